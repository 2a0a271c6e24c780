"""A compression of another package, through an entry point: the page on it runs, and it does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.plugins import installed_from

from splitsec.errors import ConfigError
from splitsec.settings.compression import COMPRESSION_ARGUMENTS, check_compression
from splitsec.training.compression import COMPRESSIONS, coders


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-compression.md", tmp_path, monkeypatch, COMPRESSIONS, COMPRESSION_ARGUMENTS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "2 rounds with bytes" in capsys.readouterr().out


def test_a_byte_a_value_travels(installed: str) -> None:
    torch.manual_seed(0)
    values, rows = torch.randn(3, 20), torch.arange(3)
    sender, receiver = coders("bytes", 3)[1], coders("bytes", 3)[1]
    sent = sender.pack(values, rows)
    assert sum(tensor.numel() * tensor.element_size() for tensor in sent) == 3 * (20 + 8)
    assert (receiver.unpack(sent, (3, 20)) - values).abs().max() < 0.02


def test_without_the_package_it_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown compression 'bytes'; choose one of: none, float16"):
        check_compression("bytes")
