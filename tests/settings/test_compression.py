"""Names of compressions, and what may stand behind them."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.compression import check_compression


@pytest.mark.parametrize("text", ["none", "float16", "bfloat16", "topk:0.1", "topk:1"])
def test_a_compression_is_named_with_what_it_takes(text: str) -> None:
    check_compression(text)


@pytest.mark.parametrize("text", ["", "zip", "none:1", "topk", "topk:0", "topk:1.5", "topk:x", "float16:2"])
def test_another_text_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match="choose one of: none, float16, bfloat16, topk:F with 0 < F <= 1"):
        check_compression(text)
