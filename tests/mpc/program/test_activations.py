"""What a client gives a program: real numbers as they are, ring elements by a type of their own, nothing else."""

from typing import Any

import pytest
import torch
from support.two_party import run_both
from torch import nn

from splitsec.cut import trace
from splitsec.errors import MessageError, RangeError
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program.compile import compile_tail, encode_weights
from splitsec.mpc.program.execute import Encoded, encode_activation, run_program
from splitsec.mpc.session.session import Planner

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64)
# Exact in every dtype.
X = torch.tensor([[1.0, 0.0, 3.0, 1.0], [0.0, 2.0, 1.0, 0.0]])


def _tail() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def _run(given: Any, server: Encoded | None = None) -> torch.Tensor:
    program, weights = compile_tail(trace(_tail()), (2, 4))
    encoded = encode_weights(program, weights)

    def protocol(context: Context) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(
            program, context, activation=given if client else server, weights=None if client else encoded
        )

    (_, opened), _ = run_both(protocol, weights={layer: one.weight for layer, one in encoded.items()})
    return opened


def _begin(given: Any) -> None:
    """The client's side alone: what is refused is refused before the other party is waited for."""
    program, _ = compile_tail(trace(_tail()), (2, 4))
    run_program(program, Planner(CLIENT, program.precision, program.comparison), activation=given)


@pytest.mark.parametrize("dtype", REAL)
def test_real_numbers_of_any_dtype_are_taken(dtype: torch.dtype) -> None:
    torch.testing.assert_close(_run(X.to(dtype)), _tail()(X).detach(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_are_refused_before_anything_is_sent(dtype: torch.dtype) -> None:
    """As a share they would give a result, and a wrong one."""
    program, _ = compile_tail(trace(_tail()), (2, 4))
    with pytest.raises(MessageError, match=rf"the activation at cut 'pool' is {dtype}; give real numbers"):
        encode_activation(program, X.to(dtype), "pool")
    with pytest.raises(MessageError, match="give real numbers"):
        _begin(X.to(dtype))


def test_a_share_says_that_it_is_one() -> None:
    """The control: the same whole numbers as a share are what the two parties' sum stands for."""
    program, _ = compile_tail(trace(_tail()), (2, 4))
    whole = encode_activation(program, X).elements
    mine = torch.arange(8).view(2, 4) * 0x1234567890ABCDE
    torch.testing.assert_close(_run(Encoded(mine), Encoded(whole - mine)), _tail()(X).detach(), atol=1e-3, rtol=0)
    assert (_run(Encoded(X.long())) - _tail()(X)).abs().max() > 0.1


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4), torch.zeros(2, 4, 1), torch.zeros(0, 4), torch.tensor(1.0)])
def test_another_shape_is_refused(wrong: torch.Tensor) -> None:
    program, _ = compile_tail(trace(_tail()), (2, 4))
    with pytest.raises(MessageError, match="the activation at cut 'pool' has shape .*expected 2x4"):
        encode_activation(program, wrong, "pool")
    with pytest.raises(MessageError, match="the encoded activation has shape .*expected 2x4"):
        _begin(Encoded(wrong.long()))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 256.0, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_finite_or_out_of_range_is_refused(wrong: float, dtype: torch.dtype) -> None:
    program, _ = compile_tail(trace(_tail()), (2, 4))
    x = X.to(dtype).clone()
    x[1, 2] = wrong
    with pytest.raises(RangeError, match="the activation at cut 'pool' holds"):
        encode_activation(program, x, "pool")


def test_what_is_no_tensor_is_refused() -> None:
    program, _ = compile_tail(trace(_tail()), (2, 4))
    with pytest.raises(MessageError, match="is a list; give a torch.Tensor"):
        encode_activation(program, X.tolist())
