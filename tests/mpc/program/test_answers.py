"""What an opened result says of the weights that made it."""

from __future__ import annotations

import msgspec
import torch
from scipy import stats
from torch import nn

from splitsec.cut import SplitModel
from splitsec.mpc.context import SERVER
from splitsec.mpc.in_process import run_pair
from splitsec.mpc.program.compile import compile_tail, encode_weights
from splitsec.mpc.program.execute import blurred, run_program
from splitsec.mpc.program.program import Program
from splitsec.mpc.ring import encode

FEATURES, CLASSES, QUERIES = 8, 3, 40


def _layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def _answers(program: Program, weights: dict[int, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """What the client opens, as float64 before it is rounded to float32."""

    def protocol(context, query):  # type: ignore[no-untyped-def]
        activation = torch.zeros(program.input_shape) if context.planning else inputs[query : query + 1]
        if context.rank == SERVER:
            return run_program(program, context, weights=None if context.planning else weights)
        return run_program(program, context, activation=activation)

    plain = {number: held.weight for number, held in weights.items()}
    return torch.cat(run_pair(protocol, weights=plain, queries=len(inputs)).client).double()


def _extracted(program: Program, weights: dict[int, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """The weights that least squares find from ordinary predictions, float64 (classes, features)."""
    answers = _answers(program, weights, inputs)
    given = encode(inputs, 16).double() * 2.0**-16
    system = torch.cat([given, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    return torch.linalg.lstsq(system, answers).solution[:FEATURES].T


def test_predictions_do_not_give_the_last_layer_to_the_bit() -> None:
    layer = _layer()
    inputs = torch.rand(QUERIES, FEATURES, generator=torch.Generator().manual_seed(1))
    program, plain = compile_tail(SplitModel(nn.Sequential(layer), "input").tail, (1, FEATURES))
    weights = encode_weights(program, plain)
    in_ring = weights[1].weight.double() * 2.0**-16
    # The control: all bits of the product are opened, and the weights are there to the last one.
    exact = msgspec.structs.replace(program, answer_bits=32)
    assert torch.equal((_extracted(exact, weights, inputs) * 2**16).round(), in_ring * 2**16)
    errors = []
    for bits in (10, 6):
        blurry = _extracted(msgspec.structs.replace(program, answer_bits=bits), weights, inputs)
        assert ((blurry * 2**16).round() == in_ring * 2**16).double().mean() < 0.3
        errors.append((blurry - in_ring).abs().mean().item())
    # Each bit less doubles what an attacker errs by.
    assert 8 < errors[1] / errors[0] < 32


def test_an_answer_is_right_to_its_last_bit_and_no_further() -> None:
    layer = _layer()
    inputs = torch.rand(10, FEATURES, generator=torch.Generator().manual_seed(2))
    program, plain = compile_tail(SplitModel(nn.Sequential(layer), "input").tail, (1, FEATURES))
    weights = encode_weights(program, plain)
    assert program.answer_bits == 16
    with torch.no_grad():
        wanted = layer(inputs)
    for bits in (16, 8, 4):
        answers = _answers(msgspec.structs.replace(program, answer_bits=bits), weights, inputs)
        assert (answers - wanted).abs().max() < 2.0 ** (-bits - 1) + 2e-4


def test_what_lies_below_the_last_bit_is_uniform_whatever_the_result() -> None:
    low = []
    for value in (0, 12345, -(1 << 20) - 7):
        opened = blurred(torch.full((20_000,), value), 12)
        low.append((opened & 0xFFF).double() / 4096)
        assert stats.kstest(low[-1].numpy(), "uniform").pvalue > 1e-4
        # The upper bits are the value's own, rounded at random by its fraction.
        assert abs((opened.double() - value).mean().item()) < 50
    # The control: without noise the lowest bits are those of the value.
    assert torch.equal(blurred(torch.full((4,), 12345), 0) & 0xFFF, torch.full((4,), 12345 & 0xFFF))


def test_results_that_are_small_keep_their_digits() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        layer.weight.mul_(2.0**-10)
        layer.bias.zero_()
    program, plain = compile_tail(SplitModel(nn.Sequential(layer), "input").tail, (1, FEATURES))
    assert program.answer_bits > 20
    inputs = torch.rand(4, FEATURES)
    with torch.no_grad():
        wanted = layer(inputs)
    error = (_answers(program, encode_weights(program, plain), inputs) - wanted).abs().max()
    assert error < 1e-2 * wanted.abs().max()
