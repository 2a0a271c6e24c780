"""The user's own line: where a model's code does what a message is about."""

from __future__ import annotations

import linecache
import os
import re
from pathlib import Path
from types import FrameType, TracebackType

import torch

_INNER = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).absolute().parent}{os.sep}", "<")


def place_of(frame: FrameType | None) -> str:
    """Return the user's line that is running, the innermost outside torch and this package, as `file:line (source)`."""
    frame = user_frame(frame)
    return "" if frame is None else _described(frame.f_code.co_filename, frame.f_lineno)


def place_of_error(trace: TracebackType | None) -> str:
    """Return the user's line at which an error was raised."""
    place = ""
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_INNER):
            place = _described(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return place


def place_of_trace(text: str) -> str:
    """Return the user's line of a stack's trace as Python prints it, such as torch.export keeps for each node."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', text)
    outside = [(file, int(line)) for file, line in lines if not file.startswith(_INNER)]
    return _described(*outside[-1]) if outside else ""


def _described(file: str, line: int) -> str:
    return f"{file}:{line} ({linecache.getline(file, line).strip()})"


def user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside torch and this package."""
    while frame is not None and frame.f_code.co_filename.startswith(_INNER):
        frame = frame.f_back
    return frame
