import pytest
import torch
from torch import nn

from splitsec.cut.joined import VerticalModel
from splitsec.errors import ConfigError


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
