"""Compiled loops over ring elements: bit planes, and the final step of a selection.

A bit plane holds one bit of many elements: bit i of word w belongs to element 64 * w + i. On planes, one machine
instruction works on 64 elements, so that the comparison's circuits cost next to nothing; what costs is to get into
planes and out of them, which NumPy would do with many passes. Compiled by numba, once, to a cache on disk.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
import torch

Words: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]"
Ints: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
WORD = 64


def words_for(count: int) -> int:
    """Return how many 64-bit words a plane of `count` elements takes."""
    return (count + WORD - 1) // WORD


def planes_in(tensor: torch.Tensor) -> Words:
    """View ring elements as words of planes, without a copy."""
    planes: Words = tensor.numpy().view(np.uint64)
    return planes


def tensor_of(planes: Words) -> torch.Tensor:
    """View words of planes as ring elements, without a copy."""
    return torch.from_numpy(planes.view(np.int64))


@numba.njit("uint64[:,:](int64[:], int64, int64)", cache=True, nogil=True)
def planes_of(values, low, high):  # type: ignore[no-untyped-def]
    """Return bit planes `low` to `high - 1` of int64 (n,), as uint64 (high - low, words).

    Each block of 64 elements is transposed as a 64 x 64 bit matrix by exchanging ever smaller quarters (H. S. Warren,
    "Hacker's Delight", 2nd edition 2012, section 7-3).
    """
    count = values.shape[0]
    words = (count + 63) // 64
    out = np.zeros((high - low, words), dtype=np.uint64)
    block = np.zeros(64, dtype=np.uint64)
    for word in range(words):
        base = 64 * word
        size = min(64, count - base)
        for i in range(64):
            block[i] = np.uint64(values[base + i]) if i < size else np.uint64(0)
        width = np.uint64(32)
        mask = np.uint64(0x00000000FFFFFFFF)
        for _ in range(6):
            step = np.int64(width)
            for start in range(0, 64, 2 * step):
                for k in range(start, start + step):
                    swap = ((block[k] >> width) ^ block[k + step]) & mask
                    block[k] ^= swap << width
                    block[k + step] ^= swap
            width >>= np.uint64(1)
            mask ^= mask << width
        for plane in range(low, high):
            out[plane - low, word] = block[plane]
    return out


@numba.njit("int64[:](uint64[:], int64)", cache=True, nogil=True)
def bits_of(plane, count):  # type: ignore[no-untyped-def]
    """Return the bits of one plane as int64 (count,) with values 0 and 1."""
    out = np.empty(count, dtype=np.int64)
    for i in range(count):
        out[i] = np.int64((plane[i >> 6] >> np.uint64(i & 63)) & np.uint64(1))
    return out


@numba.njit(
    [
        f"void(int64[:], uint64[:], int64[:], int64[:], int64[:], {small}[:], {small}[:], int64, boolean, int64[:])"
        for small in ("uint16", "uint32", "uint64")
    ],
    cache=True,
    nogil=True,
)
def truncate_and_select(  # type: ignore[no-untyped-def]
    opened, choice, shifted, bit, bit_shifted, top, bit_top, shift, first, product
):
    """Write shares of b * x, where x is z truncated by `shift` and b the bit whose masked form is `choice`; see `relu`.

    Args:
        opened: c = z + 2**62 + r, public.
        choice: plane of s = b xor t, public.
        shifted, bit, bit_shifted: shares of r >> shift, t, t * (r >> shift).
        top, bit_top: shares of msb(r) and t * msb(r) modulo 2**16, 2**32 or 2**64, whichever holds `shift` bits.
        first: whether this party adds public constants.
        product: output, int64 (n,).
    """
    up = np.uint64(64) - np.uint64(shift)
    for i in range(opened.shape[0]):
        c = opened[i]
        public = np.int64(np.uint64(c) >> np.uint64(shift)) - (np.int64(1) << np.int64(62 - shift))
        no_wrap = np.int64(0) if c < 0 else np.int64(1)
        x = no_wrap * np.int64(np.uint64(top[i]) << up) - shifted[i]
        if first:
            x += public
        tx = bit[i] * public - bit_shifted[i] + no_wrap * np.int64(np.uint64(bit_top[i]) << up)
        s = np.int64((choice[i >> 6] >> np.uint64(i & 63)) & np.uint64(1))
        product[i] = s * x + (1 - 2 * s) * tx


@numba.njit("void(int64[:], uint64[:], int64[:], int64[:], int64[:], boolean, int64[:])", cache=True, nogil=True)
def select(opened, choice, mask, bit, bit_mask, first, product):  # type: ignore[no-untyped-def]
    """Write shares of b * x, where c = x + r is public and nothing is truncated.

    `mask`, `bit`, `bit_mask` are shares of r, t and t * r; the others as in `truncate_and_select`.
    """
    for i in range(opened.shape[0]):
        c = opened[i]
        x = -mask[i]
        if first:
            x += c
        tx = bit[i] * c - bit_mask[i]
        s = np.int64((choice[i >> 6] >> np.uint64(i & 63)) & np.uint64(1))
        product[i] = s * x + (1 - 2 * s) * tx


@numba.njit(inline="always")
def _fold(low, plane, high):  # type: ignore[no-untyped-def]
    """Set low = high xor (not plane and low): a variable of a product becomes its masked bit xor the public one."""
    for word in range(low.shape[0]):
        low[word] = high[word] ^ (~plane[word] & low[word])


@numba.njit(inline="always")
def _fold_bit(low, plane, high):  # type: ignore[no-untyped-def]
    """Set low = high xor (plane and low): an opened bit is put into a product."""
    for word in range(low.shape[0]):
        low[word] = high[word] ^ (plane[word] & low[word])


@numba.njit(inline="always")
def _row(masks, products, row):  # type: ignore[no-untyped-def]
    own = masks.shape[0]
    return masks[row] if row < own else products[row - own]


@numba.njit("void(uint64[:,:], uint64[:,:], boolean, uint64[:,:], uint64[:,:])", cache=True, nogil=True)
def compare_digits(public, monomials, first, less, equal):  # type: ignore[no-untyped-def]
    """Write shares of [c < r] and [c = r] for each 4-bit digit of a public c and a dealt r.

    Args:
        public: planes of c, uint64 (4 * digits, words), low bit first.
        monomials: shares of the products of each non-empty set of the digit's bits of r, uint64 (15 * digits, words);
            set S of digit d stands at row 15 * d + S - 1, S read as a binary number.
        first: whether this party adds public constants.
        less, equal: outputs, uint64 (digits, words).

    With n = not c, [c = r] is the product of (r_k xor n_k), and [c < r] the sum over k of r_k n_k times that product
    over the higher bits; both are linear in the monomials with public coefficients.
    """
    ones = np.uint64(0xFFFFFFFFFFFFFFFF) if first else np.uint64(0)
    words = less.shape[1]
    term = np.empty((16, words), dtype=np.uint64)
    for digit in range(less.shape[0]):
        result = less[digit]
        result[:] = np.uint64(0)
        for k in range(4):
            # r_k n_k times the product over the bits above k: sets that hold k and else only bits above it.
            below = (1 << k) - 1
            for s in range(1 << k, 16):
                if (s >> k) & 1 and s & below == 0:
                    term[s] = monomials[15 * digit + s - 1]
            done = 0
            for j in range(k + 1, 4):
                plane = public[4 * digit + j]
                done |= 1 << j
                for s in range(1 << k, 16):
                    if (s >> k) & 1 and s & (below | done) == 0:
                        _fold(term[s], plane, term[s | (1 << j)])
            plane = public[4 * digit + k]
            chosen = term[1 << k]
            for word in range(words):
                result[word] ^= chosen[word] & ~plane[word]
        term[0] = ones
        for s in range(1, 16):
            term[s] = monomials[15 * digit + s - 1]
        for j in range(4):
            plane = public[4 * digit + j]
            for s in range(16):
                if s & ((1 << (j + 1)) - 1) == 0:
                    _fold(term[s], plane, term[s | (1 << j)])
        equal[digit] = term[0]


@numba.njit(
    "void(uint64[:,:], uint64[:,:], uint64[:,:], int64[:], int64[:,:], int64[:,:], int64[:,:,:], boolean, uint64[:,:])",
    cache=True,
    nogil=True,
)
def join_digits(  # type: ignore[no-untyped-def]
    public, masks, products, sizes, inputs, equal_rows, less_rows, first, joined
):
    """Write shares of less and equal of each group of digits, from their opened masked bits.

    Args:
        public: the opened l_j xor lambda_j and e_j xor epsilon_j of all groups, uint64 (rows, words).
        masks, products: shares of the masks (as many rows as `public`) and of the dealt products of masks.
        sizes: digits of each group, int64 (groups,).
        inputs: rows of `public` for each group, int64 (groups, 16): less of digit j at j, equal at 8 + j.
        equal_rows: the row of the product of epsilon over set S, -1 where there is none, int64 (groups, 256).
        less_rows: the row of lambda_j times the product of epsilon over S, int64 (groups, 8, 256). Rows count through
            `masks` and then through `products`.
        first: whether this party adds public constants.
        joined: output, uint64 (2 * groups, words): less of every group, then equal.

    less = sum over j of l_j times the product of the e_k above j; equal = the product of all e_k. Each product of
    opened and dealt bits is folded one variable at a time, as for the digits.
    """
    groups, words = len(sizes), public.shape[1]
    ones = np.uint64(0xFFFFFFFFFFFFFFFF) if first else np.uint64(0)
    term = np.empty((1 << np.max(sizes), words), dtype=np.uint64)
    for group in range(groups):
        size = sizes[group]
        whole = (1 << size) - 1
        result = joined[group]
        result[:] = np.uint64(0)
        for j in range(size):
            above = whole & ~((1 << (j + 1)) - 1)
            less = public[inputs[group, j]]
            for s in range(whole + 1):
                if s & ~above == 0:
                    if s == 0:
                        term[s] = ones
                    else:
                        term[s] = _row(masks, products, equal_rows[group, s])
                    other = _row(masks, products, less_rows[group, j, s])
                    for word in range(words):
                        term[s, word] = (less[word] & term[s, word]) ^ other[word]
            done = 0
            for k in range(j + 1, size):
                done |= 1 << k
                for s in range(whole + 1):
                    if s & ~above == 0 and s & done == 0:
                        _fold_bit(term[s], public[inputs[group, 8 + k]], term[s | (1 << k)])
            for word in range(words):
                result[word] ^= term[0, word]
        if equal_rows[group, whole] >= 0:
            for s in range(whole + 1):
                if s == 0:
                    term[s] = ones
                else:
                    term[s] = _row(masks, products, equal_rows[group, s])
            done = 0
            for k in range(size):
                done |= 1 << k
                for s in range(whole + 1):
                    if s & done == 0:
                        _fold_bit(term[s], public[inputs[group, 8 + k]], term[s | (1 << k)])
            joined[groups + group] = term[0]


@numba.njit(
    "void(uint64[:,:], uint64[:,:], uint64[:,:], int64[:,:], uint64[:,:], int64[:,:], boolean, uint64[:,:])",
    cache=True,
    nogil=True,
)
def conjunctions(public, masks, products, inputs, flips, rows, first, out):  # type: ignore[no-untyped-def]
    """Write shares of the AND of each group's bits, from their opened masked bits.

    Args:
        public: opened masked bits, uint64 (rows, words).
        masks, products: shares of the masks, and of the dealt products of masks.
        inputs: rows of `public` of each group, int64 (groups, size), size at most 4.
        flips: all ones where the group takes the complement of a bit, uint64 (groups, size).
        rows: where the product of the masks of set S stands, int64 (groups, 16), counting through `masks` first.
        first: whether this party adds public constants.
        out: output, uint64 (groups, words).
    """
    groups, size = inputs.shape
    words = public.shape[1]
    ones = np.uint64(0xFFFFFFFFFFFFFFFF) if first else np.uint64(0)
    term = np.empty((16, words), dtype=np.uint64)
    bit = np.empty(words, dtype=np.uint64)
    for group in range(groups):
        for s in range(1 << size):
            if s == 0:
                term[s] = ones
            else:
                term[s] = _row(masks, products, rows[group, s])
        for k in range(size):
            plane, flip = public[inputs[group, k]], flips[group, k]
            for word in range(words):
                bit[word] = plane[word] ^ flip
            for s in range(1 << size):
                if s & ((1 << (k + 1)) - 1) == 0:
                    _fold_bit(term[s], bit, term[s | (1 << k)])
        out[group] = term[0]


@numba.njit("void(uint64[:,:], int64[:,:], int64)", cache=True, nogil=True)
def and_rows(rows, factors, start):  # type: ignore[no-untyped-def]
    """Make row start + i the AND of the two earlier rows factors[i]: products of masks, one by one."""
    for i in range(factors.shape[0]):
        left, right, out = rows[factors[i, 0]], rows[factors[i, 1]], rows[start + i]
        for word in range(rows.shape[1]):
            out[word] = left[word] & right[word]


@numba.njit(
    ["int64[:](float32[:], float64, float64[:])", "int64[:](float64[:], float64, float64[:])"], cache=True, nogil=True
)
def to_fixed_point(values, scale, largest):  # type: ignore[no-untyped-def]
    """Return round(values * scale) as int64 (n,), half to even; `largest` (1,) gets the largest magnitude or NaN."""
    out = np.empty(values.shape[0], dtype=np.int64)
    most = 0.0
    for i in range(values.shape[0]):
        value = np.float64(values[i])
        size = abs(value)
        if not size <= most:
            most = size
            if size != size:
                break
        out[i] = np.int64(np.rint(value * scale)) if size < 9e18 / scale else 0
    largest[0] = most
    return out
