"""What a client refuses to run, whatever a server sends."""

from __future__ import annotations

import msgspec
import pytest
from torch import nn

from splitsec.cut import trace
from splitsec.errors import MessageError
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.program import LARGEST_CONSTANT, Check, Curve
from splitsec.mpc.program.validate import check_program

PROGRAM = compile_tail(trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), (2, 4))[0]


def test_a_compiled_program_is_taken() -> None:
    check_program(PROGRAM)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": 0}, "impossible program"),
        ({"limit": -1.0}, "impossible program"),
        ({"answer_bits": 99}, "impossible number of bits"),
        ({"checks": (Check(9, 3),)}, "checks a value that is not there"),
        ({"checks": (Check(1, 60),)}, "checks a value that is not there"),
    ],
)
def test_an_impossible_program_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        check_program(msgspec.structs.replace(PROGRAM, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"op": "telepathy"}, "unknown operation 'telepathy'"),
        ({"inputs": (2,)}, "step 2 of the program reads a value that is not there"),
        ({"inputs": ()}, "step 2 of the program reads a value that is not there"),
        ({"factor": LARGEST_CONSTANT}, "step 2 .* has a constant of"),
        ({"low": float("nan")}, "step 2 .* has a constant of"),
        ({"bits": 60}, "step 2 of the program has an impossible bound"),
        ({"shape": (0, 3)}, "step 2 of the program has an impossible shape"),
        ({"shape": (1 << 20, 1 << 20)}, "step 2 of the program has an impossible shape"),
        ({"curves": (Curve(0.0, (), (1.0,)),)}, "step 2 of the program has an impossible curve"),
        ({"digits": -1}, "step 2 of the program has an impossible scale"),
        ({"op": "argmax", "shape": (2, 3, 1)}, "only the last step of a program may take a label"),
    ],
)
def test_an_impossible_step_is_refused_by_its_number(changes: dict[str, object], reason: str) -> None:
    steps = (PROGRAM.steps[0], msgspec.structs.replace(PROGRAM.steps[1], **changes))
    with pytest.raises(MessageError, match=reason):
        check_program(msgspec.structs.replace(PROGRAM, steps=steps))
