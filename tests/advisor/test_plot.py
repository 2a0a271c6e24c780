from pathlib import Path

import pytest

from splitsec.advisor.cut_costs import CutCost, Encrypted
from splitsec.advisor.plot import draw
from splitsec.errors import ConfigError

COSTS = [
    CutCost("input", (4,), 4, 0, 20, 0, 20, None, reason="no encrypted form"),
    CutCost("0", (4,), 4, 20, 0, 20, 0, Encrypted(1, 1, 100, 50, 1.0, 2.0, True)),
]


@pytest.mark.parametrize(("suffix", "mark"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_has_the_format_of_its_suffix(tmp_path: Path, suffix: str, mark: bytes) -> None:
    draw(COSTS, tmp_path / f"cuts.{suffix}", "a model")
    assert (tmp_path / f"cuts.{suffix}").read_bytes().startswith(mark)


def test_an_unknown_suffix_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot draw .*cuts.nothing: end it with one of .*\.png"):
        draw(COSTS, tmp_path / "cuts.nothing", "a model")
