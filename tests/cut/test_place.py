"""The user's own line in a trace, and not torch's."""

from pathlib import Path

import torch

from splitsec.cut.place import place_of_trace


def test_the_last_line_outside_torch_is_the_users() -> None:
    inner = Path(torch.__file__).parent / "nn" / "modules" / "linear.py"
    text = f'  File "{__file__}", line 1, in forward\n    x\n  File "{inner}", line 9, in forward\n    y\n'
    assert place_of_trace(text) == f'{__file__}:1 ("""The user\'s own line in a trace, and not torch\'s.""")'
    assert place_of_trace("") == ""
