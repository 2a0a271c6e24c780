"""Clean cuts, their names, and what is said of a cut that is none."""

import pytest
import torch
import torchvision
from torch import nn

from splitsec.cut import CutGraph, SplitModel, trace, vocabulary
from splitsec.errors import CutError
from splitsec.models.demo import digits_cnn


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.relu(self.fc1(x))
        y = self.fc2(x) + x
        return self.fc3(torch.flatten(y, 1))


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


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.output(self.input(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc(self.rnn(x)[0].chunk(2, -1)[0].repeat(1, 1, 2))


def test_names_and_values_that_are_no_cut() -> None:
    assert list(SplitModel(Named(), "input").front.state_dict()) == ["input.weight", "input.bias"]
    assert SplitModel(Recurrent(), "getitem").cuts == ["getitem", "getitem_1", "repeat"]
    for wrong in (None, 3, ["a", None]):
        with pytest.raises(CutError, match="is no cut; write"):
            SplitModel(Named(), wrong)  # type: ignore[arg-type]


def test_a_layer_that_is_called_twice_names_both_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.act(self.b(self.act(self.a(x))))

    graph = CutGraph(trace(Twice()))
    assert [point.name for point in graph.points] == ["a", "act", "b"]
    assert graph.find("act").node is graph.points[1].node
    assert [node.name for node in graph.crossing(graph.find("a").node)] == ["a"]


def test_which_values_can_be_sent_is_seen_from_a_sample() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.b(self.a(x) * (x > 0).sum())

    graph = CutGraph(trace(Sums()))
    assert {node.name for node in graph.tensors(torch.randn(3, 4))} >= {"x", "a", "mul"}
    assert not {node.name for node in graph.tensors(torch.randn(3, 4))} & {"gt", "sum_1"}


def test_the_vocabulary_is_that_of_the_embedding_that_takes_the_input() -> None:
    assert vocabulary(trace(nn.Sequential(nn.Embedding(7, 3), nn.Flatten()))) == 7
    assert vocabulary(trace(nn.Sequential(nn.Linear(3, 3)))) is None
    assert vocabulary(nn.Embedding(7, 3)) is None
