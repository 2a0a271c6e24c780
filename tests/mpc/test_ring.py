import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitsec.errors import RangeError
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import check_range, decode, encode, real_limit, shift_right, top_bit

ring_element = st.integers(-(2**63), 2**63 - 1)


@given(st.floats(-30000, 30000, width=32), st.integers(8, 20))
def test_encoding_is_off_by_half_a_unit_at_most(x: float, precision: int) -> None:
    back = encode(torch.tensor([x], dtype=torch.float64), precision).double().item() / 2**precision
    assert abs(back - x) <= 0.5 / 2**precision


@given(st.lists(ring_element, min_size=1, max_size=20), st.binary(min_size=16, max_size=16))
def test_shares_add_up_modulo_2_64(values: list[int], seed: bytes) -> None:
    secret = torch.tensor(values, dtype=torch.int64)
    mask = Stream(seed).ring(secret.shape)
    assert torch.equal((secret - mask) + mask, secret)


@given(ring_element, ring_element)
def test_ring_arithmetic_is_integer_arithmetic_modulo_2_64(a: int, b: int) -> None:
    def signed(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    x, y = torch.tensor([a]), torch.tensor([b])
    assert (x + y).item() == signed(a + b)
    assert (x - y).item() == signed(a - b)
    assert (x * y).item() == signed(a * b)


@given(ring_element, st.integers(1, 63))
def test_logical_shift(value: int, bits: int) -> None:
    assert shift_right(torch.tensor([value]), bits).item() == (value % 2**64) >> bits
    assert top_bit(torch.tensor([value])).item() == (value % 2**64) >> 63


@given(st.floats(-1000, 1000, width=32))
def test_decode_inverts_encode(x: float) -> None:
    assert abs(decode(encode(torch.tensor([x]))).item() - x) <= 2**-16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_named(bad: float) -> None:
    with pytest.raises(RangeError, match=r"layer 'fc' holds .*not a finite number"):
        encode(torch.tensor([1.0, bad]), what="layer 'fc'")


def test_beyond_the_range_is_named_with_its_value() -> None:
    with pytest.raises(RangeError, match=r"layer 'fc' holds a value of magnitude 2e\+09"):
        encode(torch.tensor([1.0, -2e9]), what="layer 'fc'")
    assert real_limit(16) == 2.0**30
    check_range(torch.empty(0), limit=1, what="nothing")
