"""Several values that cross one cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn

from splitsec.cut import CutGraph, SplitModel, adapt, build_segment, trace
from splitsec.cut.packing import Row, pack, rows_of, unpack
from splitsec.errors import CutError
from splitsec.mpc.program.compile import compile_tail


def test_values_of_every_shape_come_back_as_they_were() -> None:
    values = [torch.randn(3, 2, 4), torch.rand(3) > 0.5, torch.randint(0, 9, (3, 5)), torch.randn(3)]
    rows = [Row(tuple(value.shape[1:]), value.dtype) for value in values]
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{at}") for at in range(4)]
    graph.output(pack(graph, inputs, rows))
    back = fx.Graph()
    back.output(unpack(back, back.placeholder("packed"), rows))
    packed = fx.GraphModule(nn.Module(), graph)(*values)
    assert packed.shape == (3, 15)
    again = fx.GraphModule(nn.Module(), back)(packed)
    assert all(
        torch.equal(value, other) and value.dtype == other.dtype for value, other in zip(values, again, strict=True)
    )


def test_a_cut_within_a_residual_block_sends_both_paths() -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(CutError, match=r"more than one value .*--allow-values 2"):
        SplitModel(model, "layer1.0.bn2", sample=x)
    split = SplitModel(model, "layer1.0.bn2", sample=x, allow_values=2).eval()
    assert split.checked
    assert split.cut == "layer1.0.bn2@2"
    assert split.front(x).shape == (2, 2 * 64 * 8 * 8)
    torch.testing.assert_close(split(x), model(x))
    again = SplitModel(model, split.cut, sample=x)
    assert list(again.tail.state_dict()) == list(split.tail.state_dict())
    program, _ = compile_tail(split.tail, (1, 2 * 64 * 8 * 8), calibration=split.front(x))
    assert program.steps


class Masked(nn.Module):
    """Attention with a mask of the places that the input has, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        mask = there.bool()[:, None, :].expand(ids.shape[0], ids.shape[1], ids.shape[1])
        x = self.table(ids)
        for layer in (self.first, self.second):
            y = layer(x)
            x = x + F.scaled_dot_product_attention(y, y, y, attn_mask=mask)
        return self.out((x * there.unsqueeze(-1)).sum(1))


MASKED = {"ids": torch.randint(0, 11, (5, 4)), "there": torch.tensor([[1, 1, 0, 1]] * 5)}


def test_a_mask_crosses_beside_the_activation_and_not_the_whole_input() -> None:
    model = Masked()
    with pytest.raises(CutError, match="more than one value"):
        SplitModel(model, "add", sample=MASKED)
    split = SplitModel(model, "add", sample=MASKED, allow_values=3)
    torch.testing.assert_close(split(**MASKED), model(**MASKED))
    # The activation and two forms of the mask: the tokens stay.
    assert split.front(split.signature.pack(MASKED)).shape == (5, 4 * 8 + 4 * 4 + 4)


def test_a_segment_is_built_alone_where_the_model_says_what_it_takes() -> None:
    model = Masked()
    split = SplitModel(model, "add@3", sample=MASKED)
    tail = build_segment(lambda: adapt(Masked(), split.signature), "add@3", "tail", weights=model.state_dict())
    activation = split.front(split.signature.pack(MASKED))
    torch.testing.assert_close(tail(activation), split.tail(activation))


@pytest.mark.parametrize("cut", ["add@0", "add@x"])
def test_a_number_of_values_that_is_none(cut: str) -> None:
    with pytest.raises(CutError, match="how many values may cross"):
        SplitModel(Masked(), cut, sample=MASKED)


def test_shapes_that_nobody_knows_are_asked_for() -> None:
    graph = fx.symbolic_trace(nn.ReLU())
    node = next(iter(graph.graph.nodes))
    with pytest.raises(CutError, match="a sample of the model's inputs must say"):
        rows_of(graph, [node], None)


def test_cuts_behind_modules_at_which_several_values_cross_are_listed() -> None:
    graph = CutGraph(trace(torchvision.models.resnet18(weights=None, num_classes=4)))
    wider = {point.name: len(point.nodes) for point in graph.wider(2)}
    assert wider["layer1.0.bn2"] == 2
    assert not set(wider) & {point.name for point in graph.points}
    assert graph.wider(1) == []
