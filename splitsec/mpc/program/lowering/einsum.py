"""Lowering sums of products by index letters, such as `torch.einsum("bij,bkj->bik", x, y)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.arithmetic import matmul
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.layers import linear


def einsum(lowering: Lowering, call: Call, equation: str, operands: Sequence[Any]) -> Shared:
    """Lower a sum of products of two values, as a product of matrices.

    Each letter is of the batch (in both and in the result), of one matrix alone (in one and in the result), or is
    summed (in both). A constant of the server's may be one of the two.

    Raises:
        UnsupportedLayerError: other numbers of values, repeated letters, dots, or a sum within one value.
    """
    left_letters, right_letters, output = _letters(call, equation, operands)
    left, right = operands
    batch = [letter for letter in left_letters if letter in right_letters and letter in output]
    summed = [letter for letter in left_letters if letter in right_letters and letter not in output]
    rows = [letter for letter in left_letters if letter not in right_letters]
    columns = [letter for letter in right_letters if letter not in left_letters]
    if not isinstance(left, Shared):
        left, right, left_letters, right_letters = right, left, right_letters, left_letters
        rows, columns = columns, rows
    sizes = dict(zip(left_letters, left.shape, strict=True)) | dict(zip(right_letters, right.shape, strict=True))
    if isinstance(right, torch.Tensor) and batch:
        raise UnsupportedLayerError(
            f"'{call.name}' ({equation}) multiplies by a constant for each '{batch[0]}'; use * and sum"
        )
    first = _turned(lowering, call.name, left, left_letters, [*batch, *rows, *summed])
    first = _flat(lowering, call.name, first, sizes, (batch, rows, summed))
    shape = (*first.shape[:-1], math.prod(sizes[letter] for letter in columns))
    if isinstance(right, torch.Tensor):
        order = [right_letters.index(letter) for letter in [*columns, *summed]]
        weight = right.detach().permute(order).reshape(shape[-1], first.shape[-1])
        product = linear(lowering, call.name, first, weight, None)
    else:
        second = _turned(lowering, call.name, right, right_letters, [*batch, *summed, *columns])
        second = _flat(lowering, call.name, second, sizes, (batch, summed, columns))
        product = matmul(lowering, call.name, first, second, shape)
    letters = [*batch, *rows, *columns]
    apart = lowering.reshape(call.name, product, [sizes[letter] for letter in letters])
    return _turned(lowering, call.name, apart, letters, output)


def _letters(call: Call, equation: str, operands: Sequence[Any]) -> tuple[list[str], list[str], list[str]]:
    """Return the letters of both values and of the result."""
    text = equation.replace(" ", "")
    inputs, arrow, output = text.partition("->")
    parts = inputs.split(",")
    if len(parts) != 2 or len(operands) != 2 or "." in text:
        raise UnsupportedLayerError(f"'{call.name}' ({equation}) is no product of two values by letters; use matmul")
    if not arrow:
        both = "".join(parts)
        output = "".join(sorted(letter for letter in set(both) if both.count(letter) == 1))
    left, right = parts
    repeated = len(set(left)) < len(left) or len(set(right)) < len(right)
    alone = [letter for letter in set(left) ^ set(right) if letter not in output]
    if repeated or alone:
        raise UnsupportedLayerError(
            f"'{call.name}' ({equation}) takes a diagonal or sums within one value; take the sum before it"
        )
    return list(left), list(right), list(output)


def _turned(lowering: Lowering, name: str, x: Shared, letters: Sequence[str], wanted: Sequence[str]) -> Shared:
    return lowering.permute(name, x, [letters.index(letter) for letter in wanted])


def _flat(
    lowering: Lowering, name: str, x: Shared, sizes: dict[str, int], groups: tuple[list[str], list[str], list[str]]
) -> Shared:
    """Return a value with the letters of the batch as they are, and the two other groups as a dimension each."""
    batch, *both = groups
    flat = [math.prod(sizes[letter] for letter in group) for group in both]
    return lowering.reshape(name, x, [*(sizes[letter] for letter in batch), *flat])


def _function(lowering: Lowering, call: Call) -> Shared:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    return einsum(lowering, call, equation, operands)


LOWERINGS.register("einsum")(Tables({}, {torch.einsum: _function}))
