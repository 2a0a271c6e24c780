import pytest
import torch
import torchvision
from torch import nn

from splitsec.cut import SplitModel, build_segment
from splitsec.errors import CutError
from splitsec.models.demo import digits_cnn


@pytest.mark.parametrize("name", SplitModel(digits_cnn(), "pool").cuts)
def test_every_cut_of_the_demo_model_gives_the_same_output_to_the_bit(name: str) -> None:
    model = digits_cnn()
    split, x = SplitModel(model, name), torch.randn(3, 1, 8, 8)
    assert torch.equal(split(x), model(x))
    assert split.whole_state_dict().keys() == model.state_dict().keys()


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
        (("layer2", "layer1"), "'layer2' does not come before 'layer1'; a U names"),
        (("fc", "layer1"), "does not come before"),
        (("layer3", "layer4"), "nothing for the server"),
        (("layer1", "layer2.0.conv2"), "more than one value"),
        (("layer1", "conv1"), "does not come before"),
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


class TrainsOtherwise(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc1, self.fc2 = kind, nn.Linear(4, 4), nn.Linear(4, 4)
        self.a, self.b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x):  # type: ignore[no-untyped-def]
        y, z = self.fc1(x), torch.relu(x)
        if self.kind == "output":
            return y if self.training else z
        if self.kind == "input":
            return self.fc2(z if self.training else y)
        return self.fc2(y + z) * (self.a if self.training else self.b)


@pytest.mark.parametrize("kind", ["output", "input", "parameter"])
def test_other_values_in_training_are_refused(kind: str) -> None:
    with pytest.raises(CutError, match="computes otherwise in training"):
        SplitModel(TrainsOtherwise(kind), "fc1")


def test_tied_weights_stay_tied() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[2].weight = model[1].weight
        return model

    merged = SplitModel(make(), "0").merge()
    assert merged[2].weight is merged[1].weight
    tail = build_segment(make, "0", "tail")
    assert tail.get_parameter("2.weight") is tail.get_parameter("1.weight")


def test_weights_tied_across_the_cut_are_named_with_how_to_untie_them() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.c.weight = self.a.weight

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.c(self.b(self.a(x)))

    model = Tied()
    message = r"'c.weight' and 'a.weight' are one parameter \(tied weights\).*: model.c.weight = nn.Parameter\("
    with pytest.raises(CutError, match=message) as caught:
        SplitModel(model, "b")
    # The advice is code that works.
    exec(str(caught.value).rpartition("before cutting: ")[2], {"model": model, "nn": nn})
    assert SplitModel(model, "b").checked
    numbered = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    numbered[2].weight = numbered[0].weight
    with pytest.raises(CutError, match=r"model\.get_submodule\('2'\)\.weight = nn\.Parameter"):
        SplitModel(numbered, "1")


def test_a_front_that_moves_the_batch_is_refused_when_it_runs() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            batch = x.size(0)
            return self.fc2(self.fc1(x.reshape(-1, 4)).relu()).view(batch, -1)

    with pytest.raises(CutError, match=r"2 samples become \(6, 4\): the batch must stay the first"):
        SplitModel(Moves(), "fc1")(torch.randn(2, 12))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 4), 0

    def forward(self, x):  # type: ignore[no-untyped-def]
        self.calls += 1
        self.last = self.fc(x)
        return self.last.relu()


def test_tracing_leaves_no_trace_in_the_model() -> None:
    model = nn.Sequential(Remembers(), nn.Linear(4, 2))
    SplitModel(model, "0")
    assert model[0].calls == 0
    assert not hasattr(model[0], "last")


class Doubles(nn.TransformerEncoder):
    def forward(self, src):  # type: ignore[no-untyped-def, override]
        return self.layers[0](src) * 2


def test_an_encoder_with_a_forward_of_its_own_keeps_it() -> None:
    model = nn.Sequential(Doubles(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert torch.equal(SplitModel(model, "input")(x), model(x))
