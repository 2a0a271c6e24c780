import pytest
import torch
import torchvision
from torch import nn

from splitsec.cut import SplitModel, load_segment
from splitsec.errors import CutError
from splitsec.models import digits_cnn


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.relu(self.fc1(x))
        y = self.fc2(x) + x
        return self.fc3(torch.flatten(y, 1))


@pytest.mark.parametrize("name", SplitModel(digits_cnn(), "pool").cuts)
def test_every_cut_of_the_demo_model_gives_the_same_output_to_the_bit(name: str) -> None:
    model = digits_cnn()
    split, x = SplitModel(model, name), torch.randn(3, 1, 8, 8)
    assert torch.equal(split(x), model(x))
    assert split.whole_state_dict().keys() == model.state_dict().keys()


def test_functional_and_residual_models() -> None:
    model = Functional()
    assert SplitModel(model, "relu").cuts == ["fc1", "relu", "add", "flatten"]
    for name in ("fc1", "relu", "add", "flatten"):
        x = torch.randn(2, 4)
        assert torch.equal(SplitModel(model, name)(x), model(x))


def test_a_cut_inside_a_skip_names_what_crosses_and_the_nearest_clean_cut() -> None:
    with pytest.raises(CutError, match=r"more than one value \(relu, fc2\); the nearest clean cut is 'relu' or 'add'"):
        SplitModel(Functional(), "fc2")


def test_a_wrong_name_lists_the_valid_ones() -> None:
    with pytest.raises(CutError, match="no cut 'nope'; the valid cuts are: conv1, relu1"):
        SplitModel(digits_cnn(), "nope")
    with pytest.raises(CutError, match="nothing for the server"):
        SplitModel(digits_cnn(), "fc2")


def test_a_container_stands_for_its_last_call() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    split, x = SplitModel(model, "layer2.1"), torch.randn(1, 3, 32, 32)
    assert torch.equal(split(x), model(x))
    assert not any(key.startswith("layer3") for key in split.front.state_dict())
    assert not any(key.startswith("layer2") for key in split.tail.state_dict())


def test_parameters_are_shared_with_the_model() -> None:
    model = digits_cnn()
    split = SplitModel(model, "pool")
    assert split.front.get_parameter("conv1.weight") is model.conv1.weight


def test_models_that_cannot_be_traced_or_shared() -> None:
    class Branch(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x if x.sum() > 0 else -x

    with pytest.raises(CutError, match=r"Branch cannot be traced.*test_split\.py:\d+ \(return x if x\.sum\(\) > 0"):
        SplitModel(Branch(), "x")
    shared = nn.Linear(4, 4)
    with pytest.raises(CutError, match="both sides of the cut"):
        SplitModel(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)), "1")


def test_weights_that_do_not_fit_are_named() -> None:
    split = SplitModel(digits_cnn(), "pool")
    with pytest.raises(CutError, match="missing conv1.bias"):
        load_segment(
            split.front, {key: value for key, value in split.front.state_dict().items() if key != "conv1.bias"}
        )
    with pytest.raises(CutError, match="unknown extra"):
        load_segment(split.front, {**split.front.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(CutError, match="of another shape conv1.bias"):
        load_segment(split.front, {**split.front.state_dict(), "conv1.bias": torch.zeros(1)})


class DropsByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 64), nn.Linear(64, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = nn.functional.dropout(self.fc1(x), 0.5, training=self.training)
        return self.fc2(nn.functional.batch_norm(x, torch.zeros(64), torch.ones(64), training=self.training))


def test_a_forward_that_passes_its_mode_on_is_followed() -> None:
    model = DropsByHand().eval()
    split, x = SplitModel(model, "fc1"), torch.randn(3, 4)
    assert not any(module.training for module in split.modules())
    assert torch.equal(split(x), model(x))
    split.train()
    torch.manual_seed(5)
    dropped = split(x)
    torch.manual_seed(5)
    assert torch.equal(dropped, model.train()(x))
    assert not torch.equal(dropped, split.eval()(x))


class OtherwiseInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc(x).relu() if self.training else self.fc(x)


def test_a_forward_that_does_something_else_in_training_is_refused_and_modes_are_kept() -> None:
    model = OtherwiseInTraining().eval()
    with pytest.raises(CutError, match=r"uses self\.training\); use modules such as nn\.Dropout"):
        SplitModel(model, "fc")
    assert not any(module.training for module in model.modules())


def test_the_cut_at_the_input_leaves_everything_to_the_tail() -> None:
    model = digits_cnn()
    split, x = SplitModel(model, "input"), torch.randn(2, 1, 8, 8)
    assert list(split.front.state_dict()) == []
    assert split.tail.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(split(x), model(x))


def conv_net() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


def test_a_u_leaves_front_and_head_to_the_client() -> None:
    model = conv_net().eval()
    split, x = SplitModel(model, ("layer1", "fc")), torch.randn(2, 3, 32, 32)
    assert split.head is not None
    assert split.cut == "layer1,fc" == SplitModel(model, "layer1, fc").cut
    assert list(split.head.state_dict()) == ["fc.weight", "fc.bias"]
    assert not any(key.startswith(("conv1", "layer1", "fc")) for key in split.tail.state_dict())
    assert split.whole_state_dict().keys() == model.state_dict().keys()
    assert torch.equal(split(x), model(x))
    assert torch.equal(split.head(split.tail(split.front(x))), model(x))
    head = SplitModel(model, ("relu", "layer4")).head
    assert head is not None
    assert {key.split(".")[0] for key in head.state_dict()} == {"layer4", "fc"}


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (("layer2", "layer1"), "nothing for the server"),
        (("layer3", "layer4"), "nothing for the server"),
        (("layer1", "layer2.0.conv2"), "more than one value"),
        (("layer1", "conv1"), "nothing for the server"),
        (("layer1", "nope"), "no cut 'nope'; the valid"),
        (("layer1", "layer2", "fc"), "write one name, or two"),
        ("layer1,", "write one name, or two"),
    ],
)
def test_a_u_that_does_not_separate_is_refused(cut: str | tuple[str, ...], reason: str) -> None:
    with pytest.raises(CutError, match=reason):
        SplitModel(conv_net(), cut)


@pytest.mark.parametrize("cut", ["layer2", ("layer1", "fc")])
@pytest.mark.parametrize("mode", [True, False])
def test_merging_gives_the_whole_model_again(cut: str | tuple[str, str], mode: bool) -> None:
    model = conv_net().train(mode)
    model.fc.weight.requires_grad_(False)
    split = SplitModel(model, cut)
    with torch.no_grad():
        for segment in split.segments:
            for value in segment.state_dict().values():
                value.add_(1) if value.dtype == torch.int64 else value.mul_(1.01)
    merged, x = split.merge(), torch.randn(2, 3, 32, 32)
    assert type(merged) is type(model)
    assert merged.training is mode
    assert not merged.fc.weight.requires_grad
    assert merged.conv1.weight.requires_grad
    assert merged.conv1.weight.data_ptr() != split.front.get_parameter("conv1.weight").data_ptr()
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(merged.eval()(x), split.eval()(x))


def test_dtypes_and_gradients_are_torchs() -> None:
    model = conv_net().double().eval()
    split, x = SplitModel(model, ("layer1", "fc")), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert split(x).dtype == torch.float64
    split(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    half = split.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert split.merge()(x.bfloat16()).dtype == torch.bfloat16


class AsksForSizes(nn.Module):
    """Sizes of the batch are taken early and used late, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)
        self.place = nn.Parameter(torch.randn(1, 6))

    def forward(self, x):  # type: ignore[no-untyped-def]
        batch, also, third = x.size(0), x.shape[0], x.size()[0]
        x = torch.relu(self.fc1(x)) + self.place.expand(also, -1)
        return self.fc2(x.view(batch, -1)).reshape(third, 2)


def test_the_size_of_the_batch_crosses_no_cut() -> None:
    model, x = AsksForSizes(), torch.randn(3, 4)
    split = SplitModel(model, "relu")
    assert split.cuts == ["fc1", "relu", "add", "view", "fc2"]
    for name in split.cuts:
        assert torch.equal(SplitModel(model, name)(x), model(x))


class AsksForAHeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        height = x.shape[1]
        return self.fc2(self.fc1(x).reshape(-1, height, 6))


def test_other_sizes_are_named_where_they_cross() -> None:
    with pytest.raises(CutError, match=r"more than one value \(getitem, fc1\)|shape of the input 'x'"):
        SplitModel(AsksForAHeight(), "fc1")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc(self.encoder(x).mean(1))


def test_a_transformer_can_be_cut_between_its_layers() -> None:
    model, x = Encoder().eval(), torch.randn(2, 5, 8)
    split = SplitModel(model, "encoder.layers.0")
    assert split.cuts == ["encoder.layers.0", "encoder.layers.1", "encoder.norm", "mean"]
    with torch.no_grad():
        assert torch.equal(split(x), model(x))
    assert not any("layers.0" in key for key in split.tail.state_dict())


def test_layers_keep_the_modes_that_they_had() -> None:
    model = conv_net().train()
    model.bn1.eval()
    split = SplitModel(model, "layer1")
    assert split.training
    assert not model.bn1.training
    assert not split.front.get_submodule("bn1").training


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc2(self.fc1(x) * torch.tensor([1.0, 2.0])) + torch.ones(2)


def test_constants_are_in_no_state_dict_and_the_model_stays_as_it_was() -> None:
    model, x = Literal(), torch.randn(3, 2)
    before = set(vars(model))
    split = SplitModel(model, "fc1")
    assert set(vars(model)) == before
    assert split.whole_state_dict().keys() == model.state_dict().keys()
    assert torch.equal(split(x), model(x))
    split.load_whole_state_dict(Literal().state_dict())
    assert torch.equal(split.merge()(x), split(x))
