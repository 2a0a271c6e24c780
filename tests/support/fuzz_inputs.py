"""Inputs for decoders that nobody in his right mind sends: made from the messages' own types, then damaged.

Everything comes from one seed. `SPLITSEC_FUZZ_SECONDS` is how long all targets of `tests/fuzz` together go on, a few
seconds if it is not set; `SPLITSEC_FUZZ_SEED` is the seed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from msgspec import inspect

from splitsec.transport.tensor_specs import DTYPE_NAMES, Optional, Several, TensorSpec

SECONDS = float(os.environ.get("SPLITSEC_FUZZ_SECONDS", "6"))
SEED = int(os.environ.get("SPLITSEC_FUZZ_SEED", "20"))
TARGETS = 14
NUMBERS = [0, 1, -1, 2, 5, 100, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1]
FLOATS = [0.0, 1.0, -1.5, float("nan"), float("inf"), 1e308, 5e-324]
TEXTS = ["", "x", "client-1", "logits", "ab" * 16, "a" * 300, "\n\x1b[2J\u2028\u202e", "../../x", "\ud7ff\U0010ffff"]


def rounds(chosen: random.Random, share: float = 1.0) -> Iterator[int]:
    """Counts for as long as one target has; at least 50."""
    end = time.monotonic() + SECONDS * share / TARGETS
    number = 0
    while number < 50 or time.monotonic() < end:
        yield number
        number += 1


def chooser(target: str) -> random.Random:
    """The source of everything random of one target; prints how to have it again."""
    print(f"SPLITSEC_FUZZ_SEED={SEED} SPLITSEC_FUZZ_SECONDS={SECONDS:g}, target {target}")
    return random.Random(f"{SEED} {target}")


def value_of(kind: Any, chosen: random.Random, depth: int = 0) -> Any:
    """A value of a msgspec type description, mostly one that its decoder takes."""
    match kind:
        case inspect.UnionType():
            return value_of(chosen.choice(kind.types), chosen, depth)
        case inspect.StructType():
            fields = {one.encode_name: value_of(one.type, chosen, depth + 1) for one in kind.fields}
            if kind.array_like:
                return list(fields.values())
            return fields if kind.tag is None else {"type": kind.tag, **fields}
        case inspect.VarTupleType() | inspect.ListType():
            count = chosen.choice([0, 1, 2, 3]) if depth < 6 else 0
            return [value_of(kind.item_type, chosen, depth + 1) for _ in range(count)]
        case inspect.TupleType():
            return [value_of(one, chosen, depth + 1) for one in kind.item_types]
        case inspect.LiteralType():
            return chosen.choice(kind.values)
        case inspect.BoolType():
            return chosen.random() < 0.5
        case inspect.IntType():
            return chosen.randrange(1, 40) if chosen.random() < 0.8 else chosen.choice(NUMBERS)
        case inspect.FloatType():
            return chosen.choice(FLOATS)
        case inspect.StrType():
            named = {r"\A[a-z][a-z0-9-]{0,62}\Z": "client-1"}
            usual = named.get(str(kind.pattern), "ab" * 16)
            return usual if chosen.random() < 0.7 else chosen.choice(TEXTS)
        case inspect.BytesType():
            return chosen.randbytes(chosen.choice([0, 15, 16, 16, 16, 64, 65]))
        case inspect.NoneType():
            return None
        case _:
            return chosen.choice([None, 1, "x", [], {}])


def message_of(kind: inspect.StructType, chosen: random.Random) -> list[bytes]:
    """The frames of a message of this class, mostly one that its decoder takes."""
    infos: list[Any] = []
    frames: list[bytes] = []
    for tensor in _tensors(kind.cls, chosen):
        infos.append(None if tensor is None else [DTYPE_NAMES[tensor.dtype], list(tensor.shape)])
        if tensor is not None:
            frames.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return [msgspec.msgpack.encode({"body": value_of(kind, chosen), "tensors": infos}), *frames]


def _tensors(kind: Any, chosen: random.Random) -> list[torch.Tensor | None]:
    """What a class of messages declares, or up to three tensors, some of them odd."""
    if chosen.random() < 0.2:
        odd = [
            torch.zeros(3, 4),
            torch.full((2, 3), float("nan")),
            torch.zeros(0, 5),
            torch.arange(4),
            torch.ones(1, 6),
            torch.zeros(5, 32, dtype=torch.uint8),
            None,
        ]
        return [chosen.choice(odd) for _ in range(chosen.choice([0, 1, 1, 2, 3]))]
    tensors: list[torch.Tensor | None] = []
    for declared in kind.tensors.declared.values():
        spec = declared if isinstance(declared, TensorSpec) else declared.spec
        dtypes = (spec.dtypes,) if isinstance(spec.dtypes, torch.dtype) else spec.dtypes
        sizes = {name: chosen.choice([0, 1, 3]) for name in spec.shape}
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape if size is not ...]
        tensor = torch.full(shape, chosen.choice([0, 1, 200]), dtype=chosen.choice(dtypes))
        if isinstance(declared, Several):
            tensors += [tensor] * chosen.choice([0, 1, 1, 2])
        else:
            tensors.append(None if isinstance(declared, Optional) and chosen.random() < 0.5 else tensor)
    return tensors


def damaged(data: bytes, chosen: random.Random) -> bytes:
    """The same bytes with something wrong, or not."""
    made = bytearray(data)
    match chosen.randrange(10):
        case 0 | 1:
            return data
        case 2 | 3 if made:
            for _ in range(chosen.choice([1, 1, 2, 8])):
                made[chosen.randrange(len(made))] ^= 1 << chosen.randrange(8)
        case 4:
            del made[chosen.randrange(len(made) + 1) :]
        case 5:
            made += chosen.randbytes(chosen.choice([1, 7, 64, 5000]))
        case 6:
            return chosen.randbytes(chosen.choice([0, 1, 3, 40, 3000]))
        case 7 if made:
            at = chosen.randrange(len(made))
            made[at:at] = chosen.choice(
                [
                    b"\xdd\xff\xff\xff\xff",
                    b"\xdf\xff\xff\xff\xff",
                    b"\xc6\xff\xff\xff\xff",
                    b"\xcf" + b"\xff" * 8,
                    b"\x91" * chosen.randrange(5000),
                    b"\x81\xa1x" * chosen.randrange(2000),
                    b"[" * chosen.randrange(5000),
                    b"\xcb\x7f\xf8\0\0\0\0\0\0",
                ]
            )
        case 8 if made:
            start, end = sorted((chosen.randrange(len(made) + 1), chosen.randrange(len(made) + 1)))
            made = made[:start] + made[start:end] * 2 + made[end:]
        case _:
            made = bytearray(b"\xc1\0\0\0" + chosen.randbytes(4)) + made
    return bytes(made)


def damaged_frames(frames: list[bytes], chosen: random.Random) -> list[bytes]:
    """A message's frames with something wrong in one of them, mostly the first, or in their number."""
    match chosen.randrange(12):
        case 0:
            return frames[1:] or [b""]
        case 1:
            return frames + [chosen.randbytes(chosen.choice([0, 8, 100]))] * chosen.choice([1, 2, 50])
        case 2:
            return chosen.sample(frames, len(frames))
        case _:
            at = chosen.randrange(len(frames)) if chosen.random() < 0.3 else 0
            return [damaged(frame, chosen) if index == at else frame for index, frame in enumerate(frames)]
