from collections import OrderedDict

import pytest
import torch
from torch import fx

from splitsec.cut.results import describe_result, nodes_in, one_tensor

X = torch.zeros(2)


@pytest.mark.parametrize("result", [X, {"logits": X}, (X,), [X, None], {"a": {"b": (None, X)}}, OrderedDict(y=X)])
def test_the_only_tensor_is_taken_out(result: object) -> None:
    assert one_tensor(result) is X


@pytest.mark.parametrize("result", [(X, X), {}, None, (X, 1), "text"])
def test_anything_else_stays_as_it_is(result: object) -> None:
    assert one_tensor(result) is result


def test_nodes_are_collected_from_nested_arguments() -> None:
    graph = fx.Graph()
    first, second = graph.placeholder("first"), graph.placeholder("second")
    assert nodes_in(((first, 1), {"y": [second, first]})) == [first, second, first]
    assert nodes_in((1, None)) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"logits": X, "h": X}, "a dict (logits, h)"),
        (OrderedDict(y=X), "a dict (y)"),
        ((X, X), "a tuple of 2 values"),
        (3, "a int"),
    ],
)
def test_a_result_is_described(value: object, text: str) -> None:
    assert describe_result(value) == text
