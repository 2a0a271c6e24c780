from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from splitsec.cut import SplitModel, build_segment
from splitsec.errors import CutError
from splitsec.models.demo import digits_cnn


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


@pytest.mark.parametrize("part", ["front", "tail", "head"])
def test_a_part_is_built_from_a_file_without_the_others(part: str, tmp_path: Path) -> None:
    whole = SplitModel(resnet().eval(), ("layer1", "fc"))
    expected = getattr(whole, part)
    save_file(whole.whole_state_dict(), tmp_path / "weights")
    built = build_segment(resnet, ("layer1", "fc"), part, weights=tmp_path / "weights")  # type: ignore[arg-type]
    assert all(value.device.type == "cpu" for value in built.state_dict().values())
    assert built.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in built.state_dict().items())
    again = build_segment(resnet, ("layer1", "fc"), part, weights=whole.whole_state_dict())  # type: ignore[arg-type]
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in again.state_dict().items())


def test_the_others_are_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter is made on the meta device; only the part's own are made again with memory."""
    devices: list[torch.device] = []
    original = nn.Linear.__init__

    def watch(self: nn.Linear, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)  # type: ignore[arg-type]
        devices.append(self.weight.device)

    monkeypatch.setattr(nn.Linear, "__init__", watch)
    front = build_segment(digits_cnn, "pool", "front")
    assert devices
    assert {device.type for device in devices} == {"meta"}
    assert all(value.device.type == "cpu" for value in front.state_dict().values())
    # The control: a model built as usual has all its weights.
    devices.clear()
    SplitModel(digits_cnn(), "pool")
    assert {device.type for device in devices} == {"cpu"}


def test_without_weights_each_layer_sets_its_own() -> None:
    torch.manual_seed(0)
    tail = build_segment(digits_cnn, "pool", "tail")
    assert tail(torch.randn(2, 32, 4, 4)).shape == (2, 10)
    assert 0.01 < tail.get_parameter("fc1.weight").std() < 0.1


class Holds(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 2), nn.Linear(2, 2)
        self.kind = kind
        self.extra = nn.Parameter(torch.zeros(2)) if kind == "parameter" else None
        if kind == "buffer":
            self.register_buffer("table", torch.zeros(2), persistent=False)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.fc1(x)
        if self.kind == "buffer":
            x = x + self.table
        elif self.kind == "parameter":
            x = x + self.extra
        else:
            x = x + torch.ones(2)
        return self.fc2(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("parameter", "no layer sets 'extra'"), ("buffer", "'table' is a constant"), ("literal", "is a constant")],
)
def test_what_no_layer_sets_is_named(kind: str, reason: str) -> None:
    with pytest.raises(CutError, match=reason):
        build_segment(lambda: Holds(kind), "fc1", "tail")
    assert list(build_segment(lambda: Holds(kind), "fc1", "front").state_dict()) == ["fc1.weight", "fc1.bias"]


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(CutError, match="missing conv1"):
        build_segment(digits_cnn, "pool", "front", weights={})
    (tmp_path / "bad").write_bytes(b"no weights")
    with pytest.raises(CutError, match="cannot read weights from"):
        build_segment(digits_cnn, "pool", "front", weights=tmp_path / "bad")
