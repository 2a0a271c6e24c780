"""The page of an audit."""

from __future__ import annotations

import torch

from splitsec.privacy.audit.page import Chapter, Row, Strip, page


def test_the_page_shows_figures_and_images() -> None:
    rows = (Row("inverse <network>", "error", 0.5, 0.7, True), Row("none", "x", 1.0, 1.0, None))
    written = page("An audit", "of a & b", [Chapter("cut", rows, (Strip("images", torch.rand(3, 1, 8, 8)),), "a note")])
    assert written.startswith("<!doctype html>")
    assert "inverse &lt;network&gt;" in written
    assert "of a &amp; b" in written
    assert 'class="leaks"' in written
    assert "data:image/png;base64,iVBOR" in written
    assert "a note" in written
