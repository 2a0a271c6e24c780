"""Distributed comparison functions: shares of [x < r] for a public x and a dealt r, without a message.

E. Boyle, N. Chandran, N. Gilboa, D. Gupta, Y. Ishai, N. Kumar, M. Rathee, "Function secret sharing for mixed-mode and
fixed-point secure computation", EUROCRYPT 2021, figure 1, for outputs in Z_2. Each party has a root of its own; the
correction words, one of 16 bytes for each bit of r, are the same for both and say nothing to either.

The tree's generator is AES-128 with a fixed key in Matyas-Meyer-Oseas form, as function secret sharing is commonly
implemented (C. Guo, J. Katz, X. Wang, Y. Yu, "Efficient and secure multiparty computation from fixed-key block
ciphers", IEEE S&P 2020, section 5): child c of s is AES(s xor 4c) xor s xor 4c. The three low bits of a seed are always
zero, which makes room for c and for a node's bits: t at bit 0, v at bit 1 of a child's block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from splitsec.mpc.bit_planes import Words, planes_in, planes_of, tensor_of, words_for
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Shape
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.comparison import COMPARISONS, Comparison

# Nothing up its sleeve: it need only be fixed.
_KEY = b"splitsec dcf key"
_BLOCK = 16
CHUNK = 1 << 14


def _encrypt(blocks: Words) -> Words:
    """Apply AES to each row of uint64 (n, 2)."""
    out = np.empty(blocks.nbytes + _BLOCK - 1, dtype=np.uint8)
    encryptor = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor()  # noqa: S305  (a permutation, not encryption)
    encryptor.update_into(memoryview(blocks.reshape(-1).view(np.uint8)), memoryview(out))
    return out[: blocks.nbytes].view(np.uint64).reshape(blocks.shape)


def roots_of(drawn: Words) -> Words:
    """Make seeds of uniform uint64 (n, 2): clear the three low bits."""
    roots = drawn.copy()
    roots[:, 0] &= np.uint64(0xFFFFFFFFFFFFFFF8)
    return roots


def generate(
    first: Words, second: Words, values: np.ndarray[tuple[int], np.dtype[np.int64]], low: int, high: int
) -> tuple[Words, Words]:
    """Make, at the dealer, the correction words for both parties.

    Args:
        first, second: the parties' roots, uint64 (n, 2).
        values: r, int64 (n,); its bits `low` to `high` - 1 are compared.

    Returns:
        Correction words, uint64 (high - low, n, 2), and the plane of final ones, uint64 (1, words).
    """
    count = len(values)
    words = np.empty((high - low, count, 2), dtype=np.uint64)
    last = np.zeros((1, words_for(count)), dtype=np.uint64)
    for begin in range(0, count, CHUNK):
        part = slice(begin, min(count, begin + CHUNK))
        size = part.stop - begin
        seeds = np.stack([first[part], second[part]])
        bits = np.zeros((3, size), dtype=np.uint8)
        bits[1] = 1
        blocks = np.empty((2, 2, size, 2), dtype=np.uint64)
        for level in range(high - low):
            _children(seeds, blocks)
            blocks ^= _encrypt(blocks.reshape(-1, 2)).reshape(blocks.shape)
            _correct(values[part], high - 1 - level, seeds, bits, blocks, words[level, part])
        _finish(seeds, bits, last[0], begin)
    return words, last


def evaluate(
    roots: Words, words: Words, last: Words, public: np.ndarray[tuple[int], np.dtype[np.int64]], low: int, party: int
) -> Words:
    """Return this party's share of the plane of [x < r] on the compared bits, uint64 (words,).

    Args:
        roots: its roots, uint64 (n, 2).
        words, last: the correction words.
        public: x, int64 (n,); bits from `low` on, as many as there are levels.
        party: 0 or 1.
    """
    levels, count, _ = words.shape
    out = np.zeros(words_for(count), dtype=np.uint64)
    for begin in range(0, count, CHUNK):
        part = slice(begin, min(count, begin + CHUNK))
        size = part.stop - begin
        seeds = roots[part].copy()
        bits = np.zeros((2, size), dtype=np.uint8)
        bits[0] = party
        for level in range(levels):
            shift = low + levels - 1 - level
            _choose(public[part], shift, seeds)
            _step(public[part], shift, seeds, _encrypt(seeds), words[level, part], bits)
        _output(seeds, bits, last[0], begin, out)
    return out


@COMPARISONS.register("dcf")
@dataclass(frozen=True)
class DcfComparison(Comparison):
    """The comparison of this module: no message between the opening of c and the result.

    It takes twenty times the dealt bytes and the arithmetic of the tables in `compare`.
    """

    def own_shapes(self) -> list[Shape]:
        """Return the shape of the roots of a party's trees."""
        return [(self.count, 2)]

    def masked_shapes(self) -> list[Shape]:
        """Return the shape of r's sign bit."""
        return [(1, self.words)]

    def shared_shapes(self) -> list[Shape]:
        """Return the shapes of the correction words, and of the final ones."""
        return [(self.width, self.count, 2), (1, self.words)]

    def deal(
        self, own: torch.Tensor, other: torch.Tensor, values: torch.Tensor, client: Stream
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Deal r's sign bit in shares, and the correction words."""
        top = planes_of(values.numpy(), self.high, self.high + 1)
        roots = roots_of(planes_in(own)), roots_of(planes_in(other))
        words = [tensor_of(planes) for planes in generate(*roots, values.numpy(), self.low, self.high)]
        return [tensor_of(top).bitwise_xor_(client.ring(self.masked_shapes()[0]))], words

    def signs(
        self,
        context: Context,
        opened: torch.Tensor,
        own: torch.Tensor,
        dealt: torch.Tensor,
        shared: Sequence[torch.Tensor],
    ) -> Words:
        """Return the signs; see `Comparison.signs`."""
        if context.planning:
            return np.zeros(self.words, dtype=np.uint64)
        words, last = (planes_in(tensor) for tensor in shared)
        less = evaluate(roots_of(planes_in(own)), words, last, opened.numpy(), self.low, context.rank)
        signs: Words = less ^ planes_in(dealt)[0]
        if context.rank == SERVER:
            signs ^= planes_of(opened.numpy(), self.high, self.high + 1)[0]
        return signs


@numba.njit("void(uint64[:,:,:], uint64[:,:,:,:])", cache=True, nogil=True)
def _children(seeds, blocks):  # type: ignore[no-untyped-def]
    """Write the inputs of the generator: blocks[party, child] from seeds[party]."""
    for party in range(2):
        for child in range(2):
            for i in range(seeds.shape[1]):
                blocks[party, child, i, 0] = seeds[party, i, 0] ^ np.uint64(4 * child)
                blocks[party, child, i, 1] = seeds[party, i, 1]


@numba.njit("void(int64[:], int64, uint64[:,:,:], uint8[:,:], uint64[:,:,:,:], uint64[:,:])", cache=True, nogil=True)
def _correct(values, shift, seeds, bits, blocks, words):  # type: ignore[no-untyped-def]
    """Do one level of generation: write the correction words, move both parties down r's path.

    `bits` are t of party 0, t of party 1, and the value that has gathered so far.
    """
    clear = np.uint64(0xFFFFFFFFFFFFFFF8)
    unit = np.uint64(1)
    for i in range(values.shape[0]):
        path = (values[i] >> shift) & 1
        lost = 1 - path
        low = (blocks[0, lost, i, 0] ^ blocks[1, lost, i, 0]) & clear
        high = blocks[0, lost, i, 1] ^ blocks[1, lost, i, 1]
        left = (blocks[0, 0, i, 0] ^ blocks[1, 0, i, 0]) & unit
        right = (blocks[0, 1, i, 0] ^ blocks[1, 1, i, 0]) & unit
        t_left = left ^ np.uint64(path) ^ unit
        t_right = right ^ np.uint64(path)
        v_lost = ((blocks[0, lost, i, 0] ^ blocks[1, lost, i, 0]) >> unit) & unit
        v_path = ((blocks[0, path, i, 0] ^ blocks[1, path, i, 0]) >> unit) & unit
        # Whoever leaves r's path to the left is smaller: beta = 1 where the left child is the lost one.
        v = v_lost ^ np.uint64(bits[2, i]) ^ np.uint64(path)
        bits[2, i] = np.uint8(np.uint64(bits[2, i]) ^ v_path ^ v)
        words[i, 0] = low | t_left | (t_right << unit) | (v << np.uint64(2))
        words[i, 1] = high
        t_word = t_right if path else t_left
        for party in range(2):
            block = blocks[party, path, i, 0]
            t = np.uint64(bits[party, i])
            seeds[party, i, 0] = (block & clear) ^ (t * low)
            seeds[party, i, 1] = blocks[party, path, i, 1] ^ (t * high)
            bits[party, i] = np.uint8((block & unit) ^ (t & t_word))


@numba.njit("void(uint64[:,:,:], uint8[:,:], uint64[:], int64)", cache=True, nogil=True)
def _finish(seeds, bits, last, begin):  # type: ignore[no-untyped-def]
    """Write the final correction bit: what the leaf's own bits leave wrong on r's path."""
    for i in range(seeds.shape[1]):
        bit = ((seeds[0, i, 0] ^ seeds[1, i, 0]) >> np.uint64(3)) & np.uint64(1)
        at = begin + i
        last[at >> 6] |= (bit ^ np.uint64(bits[2, i])) << np.uint64(at & 63)


@numba.njit("void(int64[:], int64, uint64[:,:])", cache=True, nogil=True)
def _choose(public, shift, seeds):  # type: ignore[no-untyped-def]
    for i in range(public.shape[0]):
        seeds[i, 0] ^= np.uint64(((public[i] >> shift) & 1) << 2)


@numba.njit("void(int64[:], int64, uint64[:,:], uint64[:,:], uint64[:,:], uint8[:,:])", cache=True, nogil=True)
def _step(public, shift, seeds, encrypted, words, bits):  # type: ignore[no-untyped-def]
    """Do one level of evaluation; `bits` are t and the value that has gathered."""
    clear = np.uint64(0xFFFFFFFFFFFFFFF8)
    unit = np.uint64(1)
    for i in range(public.shape[0]):
        child = np.uint64((public[i] >> shift) & 1)
        block = encrypted[i, 0] ^ seeds[i, 0]
        word, t = words[i, 0], np.uint64(bits[0, i])
        bits[1, i] ^= np.uint8(((block >> unit) ^ (t & (word >> np.uint64(2)))) & unit)
        bits[0, i] = np.uint8((block ^ (t & (word >> child))) & unit)
        seeds[i, 0] = (block & clear) ^ (t * (word & clear))
        seeds[i, 1] = encrypted[i, 1] ^ seeds[i, 1] ^ (t * words[i, 1])


@numba.njit("void(uint64[:,:], uint8[:,:], uint64[:], int64, uint64[:])", cache=True, nogil=True)
def _output(seeds, bits, last, begin, out):  # type: ignore[no-untyped-def]
    for i in range(seeds.shape[0]):
        at = begin + i
        final = (last[at >> 6] >> np.uint64(at & 63)) & np.uint64(bits[0, i])
        bit = np.uint64(bits[1, i]) ^ ((seeds[i, 0] >> np.uint64(3)) & np.uint64(1)) ^ final
        out[at >> 6] |= bit << np.uint64(at & 63)
