"""The same layers through CrypTen's functions, beside torch and beside our own protocols."""

from __future__ import annotations

import random

import pytest
import torch
from support.encrypted_tail import run_tail
from support.layer_cases import LAYERS, Of
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.compile import CompileOptions, compile_tail
from splitsec.mpc.program.operations.crypten import PREFIX, runs_through_crypten, through_crypten

# What CrypTen's approximations are off by, of values of usual size; GELU's is that of x sigmoid(1.702 x).
ERRORS = {
    **dict.fromkeys(("Linear", "Conv1d", "Conv2d", "ReLU", "LeakyReLU", "Hardtanh", "MaxPool2d", "AvgPool2d"), 1e-3),
    **dict.fromkeys(("BatchNorm2d", "Flatten", "ReLU6", "Dropout"), 1e-3),
    **dict.fromkeys(("Sigmoid", "Tanh", "Softmax", "LayerNorm"), 1e-2),
    **dict.fromkeys(("GELU", "SiLU", "LogSoftmax"), 5e-2),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_layer_is_what_torch_and_our_protocols_say(name: str) -> None:
    torch.manual_seed(7)
    layer, shape = LAYERS[name](random.Random(7))
    model, x = nn.Sequential(layer).eval(), torch.randn(shape)
    theirs, _, program = run_tail(model, x, engine="crypten")
    ours, _, _ = run_tail(model, x)
    torch.testing.assert_close(theirs, model(x), atol=ERRORS[name], rtol=ERRORS[name])
    torch.testing.assert_close(theirs, ours, atol=2 * ERRORS[name], rtol=2 * ERRORS[name])
    moved = name in ("AvgPool2d", "Flatten", "Dropout")
    assert runs_through_crypten(program) != moved


def test_products_of_values_and_the_digits_of_small_weights() -> None:
    torch.manual_seed(0)
    product = nn.Sequential(Of(lambda x: x @ x.transpose(1, 2) * x.sum(-1, keepdim=True)))
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(run_tail(product, x, engine="crypten")[0], product(x), atol=1e-3, rtol=1e-3)
    # Small weights have more digits in our protocols, which CrypTen's product would take for larger ones.
    small = nn.Sequential(nn.Linear(4, 3))
    nn.init.uniform_(small[0].weight, -0.01, 0.01)
    torch.testing.assert_close(run_tail(small, x, engine="crypten")[0], small(x), atol=1e-3, rtol=0)


def test_what_crypten_has_no_form_for_is_named() -> None:
    for layer in (nn.Mish(), nn.ELU(0.7)):
        with pytest.raises(UnsupportedLayerError, match=r"layer '0' \(curve\) has no form in CrypTen"):
            run_tail(nn.Sequential(layer), torch.randn(2, 4), engine="crypten")


def test_control_the_usual_engine_runs_no_step_through_crypten() -> None:
    from splitsec.cut import trace

    tail = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    program, _ = compile_tail(tail, (1, 4))
    assert not runs_through_crypten(program)
    assert all(step.op.startswith(PREFIX) for step in through_crypten(program.steps))
    other, _ = compile_tail(tail, (1, 4), CompileOptions(engine="crypten"))
    assert runs_through_crypten(other)
