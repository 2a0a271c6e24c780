import numpy as np
import pytest
from support.two_party import uniform_ring

from splitsec.mpc.bit_planes import bits_of
from splitsec.mpc.protocols.dcf import CHUNK, evaluate, generate, roots_of


def _compare(public: np.ndarray, values: np.ndarray, low: int, high: int) -> np.ndarray:
    roots = [roots_of(uniform_ring((len(values), 2)).numpy().view(np.uint64)) for _ in range(2)]
    words, last = generate(*roots, values, low, high)
    planes = [evaluate(roots[party], words, last, public, low, party) for party in range(2)]
    return bits_of(planes[0] ^ planes[1], len(values))


@pytest.mark.parametrize("width", [1, 2, 5])
def test_every_pair_of_a_small_ring(width: int) -> None:
    values, public = (grid.reshape(-1) for grid in np.meshgrid(np.arange(2**width), np.arange(2**width)))
    assert np.array_equal(_compare(public, values, 0, width), (public < values).astype(np.int64))


@pytest.mark.parametrize(("low", "high"), [(0, 62), (16, 44), (3, 64)])
def test_windows_of_the_real_ring(low: int, high: int) -> None:
    values, public = (uniform_ring((3 * CHUNK + 77,)).numpy() for _ in range(2))
    public[:100] = values[:100]
    window = (1 << (high - low)) - 1
    expected = ((public.view(np.uint64) >> np.uint64(low)) & np.uint64(window)) < (
        (values.view(np.uint64) >> np.uint64(low)) & np.uint64(window)
    )
    assert np.array_equal(_compare(public, values, low, high), expected.astype(np.int64))


def test_neither_share_alone_tells() -> None:
    values, public = np.full(20_000, 7), np.arange(20_000) % 16
    roots = [roots_of(uniform_ring((len(values), 2)).numpy().view(np.uint64)) for _ in range(2)]
    words, last = generate(*roots, values, 0, 4)
    for party in range(2):
        bits = bits_of(evaluate(roots[party], words, last, public, 0, party), len(values))
        for x in range(16):
            # 1,250 fair coins: five standard deviations.
            assert abs(bits[public == x].mean() - 0.5) < 0.08
    # The correction words of both comparisons with 7 and with 0 look alike; all but three bits of a word are uniform.
    other, _ = generate(*roots, np.zeros_like(values), 0, 4)
    for found in (words, other):
        ones = np.unpackbits(found.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 0.002
