"""What settings need to know of a compression: its name, and what may stand behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from splitsec.errors import ConfigError
from splitsec.registry import Registry

# Whether the text behind the name's colon, empty if there is none, says how much to compress.
CheckArgument: TypeAlias = Callable[[str], bool]
COMPRESSION_ARGUMENTS: Registry[CheckArgument] = Registry("compression")


def _none(argument: str) -> bool:
    return not argument


def _fraction(argument: str) -> bool:
    try:
        return 0 < float(argument) <= 1
    except ValueError:
        return False


for _name in ("none", "float16", "bfloat16"):
    COMPRESSION_ARGUMENTS.register(_name)(_none)
COMPRESSION_ARGUMENTS.register("topk")(_fraction)


def check_compression(text: str) -> None:
    """Raise `ConfigError` for a text that names no compression, such as `topk:0.1` does."""
    name, _, argument = text.partition(":")
    if name not in COMPRESSION_ARGUMENTS or not COMPRESSION_ARGUMENTS.get(name)(argument):
        others = [other for other in COMPRESSION_ARGUMENTS.names() if other != "topk"]
        raise ConfigError(f"unknown compression '{text}'; choose one of: {', '.join(others)}, topk:F with 0 < F <= 1")
