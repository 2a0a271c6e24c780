"""What `splitsec cuts` says of every cut: exact where it says so."""

import pytest
import torch
from support.encrypted_tail import run_tail
from torch import nn
from torch.nn import functional as F

from splitsec.advisor import CutCost, Link, Speed, list_cuts
from splitsec.cut import Signature, SplitModel, adapt
from splitsec.errors import ConfigError
from splitsec.mpc.program.cost import predict_cost


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(64, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = F.relu(self.norm(self.conv(x)))
        x = F.max_pool2d(F.gelu(x + self.skip(x)), 2)
        return self.fc(x.view(x.size(0), -1))


@pytest.fixture(scope="module")
def speed() -> Speed:
    return Speed()


@pytest.fixture(scope="module")
def costs(speed: Speed) -> list[CutCost]:
    torch.manual_seed(0)
    return list_cuts(Small(), (1, 8, 8), speed=speed)


def test_every_clean_cut_is_there_with_what_each_side_holds(costs: list[CutCost]) -> None:
    assert [cost.name for cost in costs] == ["input", "conv", "norm", "relu", "add", "gelu", "max_pool2d", "view"]
    whole = sum(parameter.numel() for parameter in Small().parameters())
    assert all(cost.front_parameters + cost.tail_parameters == whole for cost in costs)
    # 64 places by 9 and 4 by 4 products, and 64 by 3.
    assert {cost.front_macs + cost.tail_macs for cost in costs} == {64 * 9 * 4 + 64 * 16 + 64 * 3}
    by_name = {cost.name: cost for cost in costs}
    assert by_name["conv"].front_macs == 64 * 9 * 4
    assert by_name["view"].tail_macs == 64 * 3
    assert by_name["max_pool2d"].shape == (4, 4, 4)
    assert by_name["max_pool2d"].elements == 64


def test_rounds_and_bytes_are_those_of_a_real_run(costs: list[CutCost]) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    for cost in costs:
        split = SplitModel(model, cost.name).eval()
        with torch.no_grad():
            activation = split.front(torch.randn(1, 1, 8, 8))
        _, (_, client), program = run_tail(split.tail, activation, calibration=activation)
        assert cost.encrypted is not None
        traffic = client.peer.traffic
        assert cost.encrypted.rounds == traffic.rounds
        assert cost.encrypted.bytes_online == traffic.bytes_sent + traffic.bytes_received
        assert cost.encrypted.hops == predict_cost(program, 1).hops
        assert cost.encrypted.guaranteed


def test_later_cuts_cost_less_and_links_cost_more(costs: list[CutCost], speed: Speed) -> None:
    encrypted = {cost.name: cost.encrypted for cost in costs}
    first, last = encrypted["relu"], encrypted["view"]
    assert first is not None
    assert last is not None
    assert first.online_ms > last.online_ms > 0
    far = {cost.name: cost.encrypted for cost in list_cuts(Small(), (1, 8, 8), link=Link(100.0, 10.0), speed=speed)}[
        "relu"
    ]
    assert far is not None
    # At the least, the time of its messages one after another, and of its bytes one way.
    assert far.online_ms > first.hops * 50.0 + first.bytes_online / 2 * 8e-6 / 10 * 1e3


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 4), nn.Softsign(), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.last(self.other(self.one(x)))


def test_layers_without_encrypted_form_are_named_where_they_stand_in_the_way(speed: Speed) -> None:
    by_name = {cost.name: cost for cost in list_cuts(Unsupported(), (4,), speed=speed)}
    for name in ("input", "one"):
        assert by_name[name].encrypted is None
        assert "layer 'other' (Softsign) has no encrypted form" in by_name[name].reason
        assert by_name[name].tail_parameters > 0
    assert by_name["other"].encrypted is not None


def test_a_shape_that_does_not_fit_is_named(speed: Speed) -> None:
    with pytest.raises(ConfigError, match="cannot take an input of shape 3x8x8, without the batch.*channels"):
        list_cuts(Small(), (3, 8, 8), speed=speed)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.fc = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc(self.rows(x).mean(1))


def test_an_embedding_belongs_to_the_front(speed: Speed) -> None:
    by_name = {cost.name: cost for cost in list_cuts(Words(), (5,), speed=speed)}
    assert list(by_name) == ["rows", "mean"]
    assert by_name["rows"].shape == (5, 8)
    assert all(cost.encrypted is not None for cost in by_name.values())


def test_products_inside_fused_layers_are_counted(speed: Speed) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    by_name = {cost.name: cost for cost in list_cuts(nn.Sequential(nn.Linear(8, 8), layer), (5, 8), speed=speed)}
    # Projections in and out, two products of 2 heads, and two linear layers, for 5 places.
    inner = 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8
    assert by_name["0"].tail_macs == inner
    assert torch.backends.mha.get_fastpath_enabled()


class OwnLayer(nn.Module):
    """A layer that is called as it is, since it decides by its mode."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * 2 if self.training else torch.relu(x)


def test_a_users_own_layer_may_come_first_behind_a_cut(speed: Speed) -> None:
    model = nn.Sequential(OwnLayer(), nn.Linear(6, 6), OwnLayer(), nn.Linear(6, 3))
    costs = {cost.name: cost for cost in list_cuts(model, (6,), speed=speed)}
    assert list(costs) == ["input", "0", "1", "2"]
    assert all(cost.encrypted is not None for cost in costs.values())


def test_cuts_at_which_two_values_cross_are_priced_where_they_are_allowed(speed: Speed) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(y + self.b(y).relu())

    one = [cost.name for cost in list_cuts(Residual(), (6,), speed=speed)]
    two = {cost.name: cost for cost in list_cuts(Residual(), (6,), speed=speed, allow_values=2)}
    assert set(two) - set(one) == {"b@2"}
    assert two["b@2"].elements == 12
    assert two["b@2"].encrypted is not None


def test_a_model_of_several_inputs_needs_no_shape(speed: Speed) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(left) * right)

    model = adapt(Two(), Signature.of({"left": torch.zeros(1, 4), "right": torch.zeros(1, 3)}))
    assert "mul" in {cost.name for cost in list_cuts(model, None, speed=speed)}
    with pytest.raises(ConfigError, match="leave --input out"):
        list_cuts(model, (4,), speed=speed)
    with pytest.raises(ConfigError, match="give the shape of one input"):
        list_cuts(Two().a, None, speed=speed)
