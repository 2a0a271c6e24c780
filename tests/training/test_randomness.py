import torch

from splitsec.training.randomness import OwnRandomness, derived_seed


def test_parties_that_share_a_process_do_not_share_a_generator() -> None:
    alone = OwnRandomness(3)
    with alone:
        expected = [torch.rand(4), torch.rand(4)]
    mine, other = OwnRandomness(3), OwnRandomness(4)
    torch.manual_seed(0)
    outside = torch.get_rng_state()
    found = []
    for _ in range(2):
        with mine:
            found.append(torch.rand(4))
        with other:
            torch.rand(9)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert torch.equal(torch.get_rng_state(), outside)
    with OwnRandomness(None), OwnRandomness(None):
        first = torch.rand(4)
    assert not torch.equal(first, expected[0])


def test_each_purpose_has_its_own_seed() -> None:
    assert derived_seed("a", 1) == derived_seed("a", 1)
    assert len({derived_seed("a", 1), derived_seed("b", 1), derived_seed("a", 2)}) == 3
