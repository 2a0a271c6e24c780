import copy
from typing import Any

import pytest
import torch
from support.encrypted_tail import compiled, run_tail
from torch import nn

from splitsec.cut import SplitModel, trace
from splitsec.errors import MessageError, RangeError, UnsupportedLayerError
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.program.bounds import Memory
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.cost import StepMemory, predict_cost
from splitsec.mpc.program.program import Program, Step
from splitsec.mpc.program.validate import check_program


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


class Branches(nn.Module):
    """Concatenation of values of different scales, then of more than two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.fc = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 1, 1), nn.Linear(14, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        a, b = self.one(x), torch.relu(self.other(x))
        both = torch.cat([a, b], 1)
        means = nn.functional.avg_pool2d(torch.cat((both, x, x), dim=-3), 4)
        tops = nn.functional.max_pool2d(torch.cat([a, a], 1), 4)
        return self.fc(torch.cat([torch.flatten(means, 1), torch.flatten(tops, 1)], -1))


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
    "branches": (Branches, (2, 2, 4, 4)),
    "pool of one": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(1, 2)), (1, 1, 7, 7)),
    "leaky": (lambda: nn.Sequential(nn.Linear(12, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3), nn.LeakyReLU()), (2, 12)),
    "leaky first": (lambda: nn.Sequential(nn.LeakyReLU(0.3)), (2, 12)),
    "clipped": (
        lambda: nn.Sequential(nn.Linear(12, 8), nn.Hardtanh(-0.3, 0.5), nn.Linear(8, 3), nn.ReLU6()),
        (2, 12),
    ),
    "large pools": (lambda: nn.Sequential(nn.MaxPool2d(3), nn.ReLU(), nn.MaxPool2d(2)), (2, 2, 12, 12)),
    "relu then pool": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2)), (2, 1, 9, 9)),
}


def _randomised(model: nn.Module) -> nn.Module:
    for buffer in model.modules():
        if isinstance(buffer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(buffer.running_mean, -1, 1)
            nn.init.uniform_(buffer.running_var, 0.5, 2)
    return model.eval()


def _encrypted(tail: nn.Module, x: torch.Tensor, **options: Any) -> torch.Tensor:
    return run_tail(tail, x, **options)[0]


@pytest.mark.parametrize("name", MODELS)
def test_encrypted_is_plain(name: str) -> None:
    torch.manual_seed(1)
    make, shape = MODELS[name]
    tail, x = _randomised(make()), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(_encrypted(tail, x), tail(x), atol=1e-3, rtol=0)


def test_both_parties_derive_the_same_plan() -> None:
    program, _ = compile_tail(trace(MODELS["conv"][0]()), (1, 2, 8, 8))
    assert predict_cost(program, SERVER).plan == predict_cost(program, CLIENT).plan


@pytest.mark.parametrize("name", MODELS)
def test_predicted_rounds_and_bytes_are_those_of_a_realrun_tail(name: str) -> None:
    make, shape = MODELS[name]
    _, sessions, program = run_tail(_randomised(make()), torch.randn(shape))
    for session in sessions:
        predicted, traffic = predict_cost(program, session.rank).total, session.peer.traffic
        assert predicted.rounds == traffic.rounds
        assert (predicted.bytes_sent, predicted.bytes_received) == (traffic.bytes_sent, traffic.bytes_received)


def test_compiling_leaves_the_tail_as_it_was() -> None:
    tail = trace(MODELS["conv"][0]()).train()
    before = copy.deepcopy(tail.state_dict())
    compile_tail(tail, (1, 2, 8, 8))
    assert tail.training
    assert all(torch.equal(before[key], value) for key, value in tail.state_dict().items())


def test_a_layer_without_encrypted_form_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(Softsign\) has no encrypted form: use nn.Tanh"):
        compile_tail(trace(nn.Sequential(nn.Linear(2, 2), nn.Softsign())), (1, 2))


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
    program, _ = compiled(trace(tail), (1, 4), limit=1e9)
    assert program.limited_by == "2"
    # 4 * 100 * 1000 * limit stays below 2**28, and twice the limit would not.
    assert 4e5 * program.limit <= 2**28 < 4e5 * program.limit * 2
    x = torch.full((1, 4), program.limit * 0.999)
    torch.testing.assert_close(_encrypted(tail, x, limit=1e9), tail(x).detach(), rtol=1e-3, atol=0)


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


class AlwaysDrops(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return nn.functional.dropout(x)


REFUSED = {
    "batch norm of a batch": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        (2, 4),
        "batch norm",
    ),
    "dropout at any time": (AlwaysDrops, (2, 4), "drops out"),
    "flattened batch": (lambda: nn.Sequential(nn.Flatten(0)), (2, 4), "mixes the samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name: str) -> None:
    make, shape, reason = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=reason):
        compile_tail(trace(make()), shape)


@pytest.mark.parametrize("size", [3, 7, 28, 56])
def test_large_average_pools_lose_nothing(size: int) -> None:
    x = torch.rand(1, 2, size, size) * 4 - 2
    torch.testing.assert_close(_encrypted(nn.AvgPool2d(size), x), nn.AvgPool2d(size)(x), atol=2e-4, rtol=0)
    folded = nn.Sequential(nn.AvgPool2d(size), nn.Flatten(), nn.Linear(2, 2)).eval()
    torch.testing.assert_close(_encrypted(folded, x), folded(x).detach(), atol=2e-3, rtol=0)


def test_bounds_that_no_input_can_keep_are_refused() -> None:
    tail = nn.Sequential(*[nn.Linear(1, 1) for _ in range(3)])
    with torch.no_grad():
        for layer, (weight, bias) in zip(tail, ((0.0, 4096.0), (4096.0, 0.0), (4096.0, 0.0)), strict=True):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    with pytest.raises(RangeError, match="layer '2' can overflow"):
        compile_tail(trace(tail), (1, 1))
    with pytest.raises(RangeError, match="too small"):
        compile_tail(trace(nn.Sequential(nn.Linear(1, 1))).requires_grad_(False).apply(_tiny), (1, 1))


def _tiny(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.fill_(1e-10)


def test_calibrated_bounds_serve_deep_networks() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    tail = nn.Sequential(*layers, nn.Linear(64, 3)).eval()
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(2.4)
    x = torch.randn(4, 64)
    program, _ = compile_tail(trace(tail), (4, 64), calibration=torch.randn(64, 64))
    assert program.limited_by == ""
    torch.testing.assert_close(
        _encrypted(tail, x, calibration=torch.randn(64, 64)), tail(x).detach(), atol=5e-3, rtol=0
    )
    with pytest.raises(RangeError, match="in calibration: too much"):
        compile_tail(trace(tail), (4, 64), calibration=torch.randn(4, 64) * 1e9)


def test_small_weights_keep_their_digits() -> None:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3), nn.BatchNorm1d(3)).eval()
    with torch.no_grad():
        tail[0].weight.mul_(1e-4)
        tail[0].bias.mul_(1e-4)
        tail[2].weight.mul_(1e4)
    x = torch.randn(4, 16)
    program, _ = compile_tail(trace(tail), (4, 16))
    assert program.steps[0].digits > 8
    assert program.steps[2].digits == 0
    torch.testing.assert_close(_encrypted(tail, x), tail(x).detach(), atol=1.5e-1, rtol=0)


def test_a_calibration_measures_only_where_nothing_is_guaranteed() -> None:
    shallow = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    assert compile_tail(trace(shallow), (1, 4), calibration=x)[0].guaranteed
    assert not compiled(trace(shallow), (1, 4), calibration=x, guarantee=False)[0].guaranteed
    assert not compile_tail(trace(shallow), (1, 4), calibration=x * 100)[0].guaranteed
    # Inputs beyond what is usual raise the limit.
    assert compile_tail(trace(shallow), (1, 4), calibration=x * 100)[0].limit > 256


def test_memory_of_other_tails_changes_nothing() -> None:
    torch.manual_seed(0)
    model = trace(nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    x, memory = torch.randn(1, 64), Memory()
    for name in ("0", "3", "4", "9"):
        split = SplitModel(model, name)
        with torch.no_grad():
            activation = split.front(x)
        alone = compile_tail(split.tail, (1, 64), calibration=activation)
        assert compile_tail(split.tail, (1, 64), calibration=activation, memory=memory)[0] == alone[0]
    planned = StepMemory()
    for rank in (SERVER, CLIENT):
        for _ in range(2):
            assert predict_cost(alone[0], rank, planned) == predict_cost(alone[0], rank)
