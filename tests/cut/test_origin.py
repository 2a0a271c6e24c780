"""Where a segment's values come from: remembered by copies, and told by digests of names, shapes and values."""

import copy

import torch
from torch import nn

from splitsec.cut import Origin, SplitModel, origin_of, set_origin
from splitsec.cut.origin import segments_digest, shapes_digest, values_digest, whole_origin


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_segment_remembers_its_origin_also_as_a_copy() -> None:
    segment = SplitModel(_model(), "1").front
    set_origin(segment, Origin(mark="a" * 32))
    assert origin_of(copy.deepcopy(segment)) == Origin(mark="a" * 32)
    assert origin_of(nn.Linear(2, 2)) == Origin()


def test_segments_of_one_model_have_one_mark_and_those_of_another_have_another() -> None:
    split, same, other = SplitModel(_model(), "1"), SplitModel(_model(), "0"), SplitModel(_model().double(), "1")
    marks = {origin_of(segment).mark for segment in (*split.segments, *same.segments)}
    assert len(marks) == 1
    assert origin_of(other.front).mark not in marks


def test_a_digest_tells_values_names_shapes_and_types_apart_and_not_the_order() -> None:
    x = torch.arange(4.0)
    base = {"a": x, "b": x.view(2, 2)}
    digests = {
        values_digest(state.items())
        for state in (
            base,
            {**base, "a": x + 1},
            {**base, "a": x.view(4, 1)},
            {**base, "a": x.double()},
            {"c": x, "b": x.view(2, 2)},
        )
    }
    assert len(digests) == 5
    assert values_digest(reversed(base.items())) == values_digest(base.items())
    assert values_digest([("a", x[::2])]) == values_digest([("a", x[::2].clone())])
    assert shapes_digest({"a": (1,), "b": (2,)}) == shapes_digest({"b": (2,), "a": (1,)})
    assert shapes_digest({"a": (1,)}) != shapes_digest({"a": (2,)})


def test_counters_of_batches_and_the_meta_device_do_not_count() -> None:
    state = _model().state_dict()
    counted = {**state, "1.num_batches_tracked": torch.tensor(7)}
    assert whole_origin(state) == whole_origin(counted)
    with torch.device("meta"):
        bare = _model()
    assert whole_origin(bare.state_dict()).mark == ""
    assert whole_origin(bare.state_dict()).architecture == whole_origin(state).architecture
    assert segments_digest([bare]) == ""


def test_an_origin_is_described_by_its_run_or_its_values() -> None:
    assert Origin(run="0123456789", rounds=1).described == "run 01234567 after 1 round"
    assert Origin(run="0123456789", rounds=2).described == "run 01234567 after 2 rounds"
    assert Origin(mark="fedcba9876").described == "the model with values fedcba98"
    assert Origin().described == "an unknown model"
