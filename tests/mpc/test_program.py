import copy

import pytest
import torch
from torch import nn
from two_party import run_both

from splitsec.cut import trace
from splitsec.errors import MessageError, RangeError, UnsupportedLayerError
from splitsec.mpc.program import Program, Step, check_program, compile_tail
from splitsec.mpc.ring import decode
from splitsec.mpc.run import make_plan, run_program
from splitsec.mpc.session import CLIENT, SERVER, Context


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.relu(self.norm(self.conv(x)) + x)
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), (2, 12)),
    "no bias": (lambda: nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()), (3, 12)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(4, 3),
        ),
        (2, 2, 8, 8),
    ),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, dilation=2), nn.ReLU()), (1, 4, 7, 7)),
    "residual": (Residual, (2, 4, 5, 5)),
}


def _randomised(model: nn.Module) -> nn.Module:
    for buffer in model.modules():
        if isinstance(buffer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(buffer.running_mean, -1, 1)
            nn.init.uniform_(buffer.running_var, 0.5, 2)
    return model.eval()


def _encrypted(tail: nn.Module, x: torch.Tensor) -> torch.Tensor:
    program, weights = compile_tail(trace(tail), tuple(x.shape))

    def protocol(context: Context) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(program, context, activation=x if client else None, weights=None if client else weights)

    (server, opened), _ = run_both(protocol)
    assert server is None
    return decode(opened)


@pytest.mark.parametrize("name", MODELS)
def test_encrypted_is_plain(name: str) -> None:
    torch.manual_seed(1)
    make, shape = MODELS[name]
    tail, x = _randomised(make()), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(_encrypted(tail, x), tail(x), atol=1e-3, rtol=0)


def test_both_parties_derive_the_same_plan() -> None:
    program, _ = compile_tail(trace(MODELS["conv"][0]()), (1, 2, 8, 8))
    assert make_plan(program, SERVER) == make_plan(program, CLIENT)


def test_compiling_leaves_the_tail_as_it_was() -> None:
    tail = trace(MODELS["conv"][0]()).train()
    before = copy.deepcopy(tail.state_dict())
    compile_tail(tail, (1, 2, 8, 8))
    assert tail.training
    assert all(torch.equal(before[key], value) for key, value in tail.state_dict().items())


def test_a_layer_without_encrypted_form_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(Softplus\) has no encrypted form; .*Conv2d"):
        compile_tail(trace(nn.Sequential(nn.Linear(2, 2), nn.Softplus())), (1, 2))


def test_a_wrong_input_shape_is_named() -> None:
    with pytest.raises(MessageError, match="cannot take an activation of shape 1x5"):
        compile_tail(trace(nn.Sequential(nn.Linear(2, 2))), (1, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e9])
def test_bad_weights_are_named(bad: float) -> None:
    tail = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        tail[2].weight[0, 1] = bad
    with pytest.raises(RangeError, match="weight of layer '2'"):
        compile_tail(trace(tail), (1, 2))


def test_the_input_limit_is_a_guarantee() -> None:
    tail = nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        tail[0].weight.fill_(100.0)
        tail[2].weight.fill_(1000.0)
    program, _ = compile_tail(trace(tail), (1, 4))
    assert program.limited_by == "2"
    # 4 * 100 * 1000 * limit stays below 2**29, and twice the limit would not.
    assert 4e5 * program.limit <= 2**29 < 4e5 * program.limit * 2
    x = torch.full((1, 4), program.limit * 0.999)
    torch.testing.assert_close(_encrypted(tail, x), tail(x).detach(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "step",
    [
        Step("eval", "x", (0,), (1, 2)),
        Step("relu", "x", (1,), (1, 2)),
        Step("relu", "x", (), (1, 2)),
        Step("relu", "x", (0,), (1, -2)),
        Step("relu", "x", (0,), (1 << 20, 1 << 20)),
    ],
)
def test_a_client_refuses_impossible_programs(step: Step) -> None:
    with pytest.raises(MessageError):
        check_program(Program((1, 2), (step,), 1.0, "x"))
