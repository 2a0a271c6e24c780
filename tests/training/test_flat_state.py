import pytest
import torch
from torch import nn

from splitsec.errors import MessageError
from splitsec.training.flat_state import Combinable


def _module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 3))
    with torch.no_grad():
        module(torch.randn(8, 1, 5, 5) * (seed + 1) + seed)
    return module


def test_values_come_back_and_parameters_come_first() -> None:
    module = _module(1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    combinable = Combinable([module])
    flat = combinable.flat()
    assert combinable.values == len(flat) == 2 * 9 + 2 + 4 + 4 + 12
    assert combinable.parameters == combinable.values - 4
    first = torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).double()
    assert torch.equal(flat[: combinable.parameters], first)
    combinable.load(flat)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key])
        assert value.dtype == before[key].dtype
    with pytest.raises(MessageError, match="this client's 40"):
        combinable.load(torch.zeros(3, dtype=torch.float64))


def test_statistics_of_batch_norm_are_pooled() -> None:
    """The variance of all rows together; the mean of the clients' variances is the control, and too small."""
    rows = [torch.randn(50, 2, dtype=torch.float64) + 5 * number for number in range(3)]
    norms = []
    for row in rows:
        norm = nn.BatchNorm1d(2, momentum=None).double()
        norm.running_mean.copy_(row.mean(0))
        norm.running_var.copy_(row.var(0, unbiased=False))
        norms.append(norm)
    average = torch.stack([Combinable([norm]).flat() for norm in norms]).mean(0)
    own = torch.stack([norm.running_var for norm in norms]).mean(0)
    Combinable([norms[0]]).load(average)
    together = torch.cat(rows)
    torch.testing.assert_close(norms[0].running_mean, together.mean(0))
    torch.testing.assert_close(norms[0].running_var, together.var(0, unbiased=False))
    assert (own < together.var(0, unbiased=False) / 5).all()


def test_counters_stay_with_their_client() -> None:
    one, other = _module(1), _module(2)
    for _ in range(3):
        other[:2](torch.randn(2, 1, 5, 5))
    Combinable([one]).load(Combinable([other]).flat())
    assert one[1].num_batches_tracked == 1
    assert other[1].num_batches_tracked == 4
