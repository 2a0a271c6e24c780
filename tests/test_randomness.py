import pytest
import torch

from splitsec.errors import ConfigError
from splitsec.randomness import OwnRandomness, RunRandomness, derived_seed


def test_parties_that_share_a_process_do_not_share_a_generator() -> None:
    alone = OwnRandomness(3)
    with alone:
        expected = [torch.rand(4), torch.rand(4)]
    party, other = OwnRandomness(3), OwnRandomness(4)
    torch.manual_seed(0)
    outside = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with party:
            drawn.append(torch.rand(4))
        with other:
            torch.rand(9)
    assert all(map(torch.equal, expected, drawn))
    assert torch.equal(torch.get_rng_state(), outside)
    with OwnRandomness(None), OwnRandomness(None):
        first = torch.rand(4)
    assert not torch.equal(first, expected[0])


def test_each_purpose_has_its_own_seed() -> None:
    assert derived_seed("a", 1) == derived_seed("a", 1)
    assert len({derived_seed("a", 1), derived_seed("b", 1), derived_seed("a", 2)}) == 3


def _drawn(run: RunRandomness) -> list[float]:
    with run.generator():
        values: list[float] = torch.rand(4).tolist()
    return values


def test_two_runs_of_one_seed_differ_by_their_secret_and_a_restart_goes_on_as_the_first() -> None:
    first, second = RunRandomness(3), RunRandomness(3)
    assert len(first.secret) == 16
    assert first.order != second.order
    assert _drawn(first) != _drawn(second)
    restarted = RunRandomness(3, secret=first.secret)
    assert restarted.order == first.order
    assert _drawn(restarted) == _drawn(first)
    # Each client of a run has a seed of its own.
    assert RunRandomness(4, secret=first.secret).order != first.order


def test_control_a_repeatable_run_has_no_secret_and_repeats() -> None:
    first, second = (RunRandomness(3, repeatable=True) for _ in range(2))
    assert first.secret == b""
    assert first.order == second.order == 3
    assert _drawn(first) == _drawn(second)
    with pytest.raises(ConfigError, match="a repeatable run needs a seed"):
        RunRandomness(None, repeatable=True)
