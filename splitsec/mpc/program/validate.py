"""What a client checks of a program before it runs one."""

from __future__ import annotations

import math

from splitsec.errors import MessageError
from splitsec.mpc.program.operations import OPERATIONS
from splitsec.mpc.program.program import LARGEST_CONSTANT, MAX_STEPS, MOST_ANSWER_BITS, MOST_DIGITS, Program, Step
from splitsec.mpc.protocols.comparison import COMPARISONS
from splitsec.mpc.ring import HEADROOM_BITS


def check_program(program: Program) -> None:
    """Raise `MessageError` for a program that no compiler makes: what a client checks before it runs one."""
    if not 0 < program.precision < 31 or not program.limit > program.least >= 0 or len(program.steps) > MAX_STEPS:
        raise MessageError("an impossible program")
    if not 0 <= program.answer_bits <= MOST_ANSWER_BITS:
        raise MessageError("a program that opens an impossible number of bits")
    if program.comparison not in COMPARISONS:
        raise MessageError(f"the program compares by '{program.comparison[:32]}', which is not known here")
    for number, step in enumerate(program.steps, 1):
        _check_step(program, number, step)
    for check in program.checks:
        if not 0 <= check.value <= len(program.steps) or not 0 <= check.bits < HEADROOM_BITS - program.precision:
            raise MessageError("the program checks a value that is not there")


def _check_step(program: Program, number: int, step: Step) -> None:
    if step.op not in OPERATIONS:
        raise MessageError(f"the program has an unknown operation '{step.op[:32]}'")
    if not step.inputs or any(not 0 <= index < number for index in step.inputs):
        raise MessageError(f"step {number} of the program reads a value that is not there")
    # One by one: the largest of several is no number only where the first is none.
    if not all(abs(constant) < LARGEST_CONSTANT for constant in _constants(step)):
        raise MessageError(f"step {number} ('{step.name[:64]}') has a constant of {LARGEST_CONSTANT:g} or more")
    if step.op == "argmax" and (number < len(program.steps) or len(step.shape) != 2):
        raise MessageError("only the last step of a program may take a label, of two dimensions")
    impossible = {
        "bound": not 0 <= step.bits <= HEADROOM_BITS - 2 * program.precision - 2,
        "shape": any(size < 1 for size in (*step.shape, *step.weight)) or math.prod(step.shape) > 1 << 26,
        "curve": any(len(curve.slopes) != len(curve.knots) + 1 or not curve.knots for curve in step.curves),
        "scale": not 0 <= step.digits <= MOST_DIGITS,
    }
    for what, is_so in impossible.items():
        if is_so:
            raise MessageError(f"step {number} of the program has an impossible {what}")


def _constants(step: Step) -> list[float]:
    curves = [value for curve in step.curves for value in (curve.start, *curve.knots, *curve.slopes)]
    return [step.slope, step.low, step.high, step.factor, step.offset, *curves]
