import pytest
import torch
from torch import nn

from splitsec.cut import SplitModel, build_segment, load_part, load_segment
from splitsec.errors import CutError
from splitsec.models.demo import digits_cnn


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


def test_weights_without_counters_of_batches_are_taken() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2))

    state = {key: value for key, value in net().state_dict().items() if not key.endswith("num_batches_tracked")}
    front = build_segment(net, "2", "front", weights=state)
    assert front.state_dict()["1.num_batches_tracked"] == 0
    # The control: what prediction needs is not made up.
    del state["1.running_mean"]
    with pytest.raises(CutError, match=r"missing 1\.running_mean"):
        build_segment(net, "2", "front", weights=state)


def test_a_part_takes_its_own_of_a_whole_state_dict() -> None:
    torch.manual_seed(0)
    split, whole = SplitModel(digits_cnn(), "pool"), digits_cnn().state_dict()
    load_part(split.front, whole)
    assert all(torch.equal(value, whole[key]) for key, value in split.front.state_dict().items())
    assert not torch.equal(split.tail.state_dict()["fc1.weight"], whole["fc1.weight"])
