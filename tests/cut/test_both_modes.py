"""One graph for both modes: arguments may differ, steps may not."""

import pytest
from torch import fx, nn

from splitsec.cut.both_modes import join_modes
from splitsec.cut.tracer import UntraceableError


def _graph(*steps: tuple[str, float]) -> fx.Graph:
    graph = fx.Graph()
    value = graph.placeholder("x")
    for method, number in steps:
        value = graph.call_method(method, (value, number))
    graph.output(value)
    return graph


def test_arguments_follow_the_mode_and_other_steps_are_refused() -> None:
    import torch

    joined = fx.GraphModule(nn.Module(), _graph(("mul", 2.0), ("add", 1.0)))
    join_modes(joined, _graph(("mul", 3.0), ("add", 1.0)), {True: {}, False: {}})
    joined.recompile()
    assert joined.eval()(torch.ones(1)) == 3.0
    assert joined.train()(torch.ones(1)) == 4.0
    with pytest.raises(UntraceableError, match="otherwise in training"):
        join_modes(fx.GraphModule(nn.Module(), _graph(("mul", 2.0))), _graph(("add", 2.0)), {True: {}, False: {}})
