import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from splitsec.mpc.prg import Stream, fresh_seed


def test_stream_is_aes_ctr() -> None:
    seed = bytes(range(16))
    expected = Cipher(algorithms.AES(seed), modes.CTR((5).to_bytes(8, "big") + bytes(8))).encryptor().update(bytes(100))
    assert Stream(seed, 5).bytes(100).tobytes() == expected


def test_same_seed_and_index_agree_and_others_do_not() -> None:
    seed = fresh_seed()
    assert torch.equal(Stream(seed, 1).ring((50, 3)), Stream(seed, 1).ring((50, 3)))
    assert not torch.equal(Stream(seed, 1).ring((50,)), Stream(seed, 2).ring((50,)))
    assert not torch.equal(Stream(seed, 1).ring((50,)), Stream(fresh_seed(), 1).ring((50,)))


def test_reading_in_pieces_is_reading_at_once() -> None:
    seed = fresh_seed()
    pieces, whole = Stream(seed), Stream(seed)
    got = np.concatenate([pieces.bytes(count) for count in (1, 31, 1 << 20, 17)])
    assert np.array_equal(got, whole.bytes(len(got)))


def test_ring_elements_and_bits_look_uniform() -> None:
    stream = Stream(bytes(range(16)))
    counts = np.bincount(stream.ring((20_000,)).view(torch.uint8).numpy(), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    bits = stream.bits((64, 500))
    assert set(bits.unique().tolist()) == {0, 1}
    assert abs(bits.double().mean().item() - 0.5) < 0.02


def test_seed_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Stream(b"short")
