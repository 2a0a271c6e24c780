import pytest
import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.training.vertical import VerticalModel, split_aligned


def test_the_split_is_everybodys() -> None:
    train, test = split_aligned(10, 0.2, 3)
    assert sorted(train + test) == list(range(10))
    assert len(test) == 2
    assert split_aligned(10, 0.2, 3) == (train, test)
    assert split_aligned(10, 0.2, 4) != (train, test)
    with pytest.raises(ConfigError, match="leave none to train on"):
        split_aligned(0, 0.5, 0)


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_the_model_joins(join: str) -> None:
    model = VerticalModel(
        {"a": nn.Linear(2, 3), "b": nn.Linear(1, 3)}, nn.Linear(6 if join == "concat" else 3, 2), join=join
    )
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    left, right = model.fronts["a"](x), model.fronts["b"](y)
    together = torch.cat([left, right], 1) if join == "concat" else left + right
    torch.testing.assert_close(model(x, y), model.tail(together))
    with pytest.raises(ConfigError, match="at least two clients"):
        VerticalModel({"a": nn.Linear(2, 3)}, nn.Linear(3, 2))
