"""Declarations of tensors, and those of every message: what is not declared does not get past the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.mpc.session.messages import SessionBody
from splitsec.parties.messages import DealerBody, ServerBody
from splitsec.prediction.messages import ContributionBody
from splitsec.prediction.server.worker_forker import PoolBody
from splitsec.transport import Message
from splitsec.transport.tensor_specs import DTYPE_NAMES, Optional, Several, TensorInfo, Tensors, TensorSpec

UNIONS = (ServerBody, DealerBody, SessionBody, ContributionBody, PoolBody)
MESSAGES: list[type[Message]] = sorted(
    {kind for union in UNIONS for kind in get_args(union)}, key=lambda kind: kind.__name__
)
CARRYING = [kind for kind in MESSAGES if kind.tensors.declared]


def _info(declared: Any) -> TensorInfo:
    """Return what a header says of a right tensor: every size with a name, and every free one, is 3."""
    spec = declared if isinstance(declared, TensorSpec) else declared.spec
    dtype = spec.dtypes if isinstance(spec.dtypes, torch.dtype) else spec.dtypes[0]
    shape = tuple(size if isinstance(size, int) else 3 for size in spec.shape if size is not ...)
    return TensorInfo(DTYPE_NAMES[dtype], shape or (3,))


def _right(kind: type[Message]) -> list[TensorInfo | None]:
    return [_info(declared) for declared in kind.tensors.declared.values()]


def _check(kind: type[Message], infos: list[TensorInfo | None]) -> list[str]:
    return kind.tensors.names_of(kind.__name__, infos)


def _wrong(kind: type[Message]) -> Iterator[tuple[str, list[TensorInfo | None]]]:
    """Give headers with one thing wrong, with what the refusal says."""
    for place, (name, declared) in enumerate(kind.tensors.declared.items()):
        right = _right(kind)
        spec = declared if isinstance(declared, TensorSpec) else declared.spec
        dtypes = (spec.dtypes,) if isinstance(spec.dtypes, torch.dtype) else spec.dtypes
        other = next(text for dtype, text in DTYPE_NAMES.items() if dtype not in dtypes)
        info = _info(declared)
        yield f"{name} has dtype {other}", [*right[:place], TensorInfo(other, info.shape), *right[place + 1 :]]
        if spec.shape != (...,):
            open_ended = spec.shape[-1] is ...
            shape = info.shape[:-1] if open_ended else (*info.shape, 3)
            if len(shape) != len(info.shape) and not (open_ended and len(spec.shape) > len(shape) + 2):
                yield f"{name} has shape", [*right[:place], TensorInfo(info.dtype, shape), *right[place + 1 :]]
        if not isinstance(declared, Optional):
            yield name, [*right[:place], None, *right[place + 1 :]]
    yield "", [*_right(kind), *[TensorInfo("float32", (3,))] * 5000]


@pytest.mark.parametrize("kind", CARRYING, ids=lambda kind: kind.__name__)
def test_what_a_message_does_not_declare_is_refused(kind: type[Message]) -> None:
    # The control: what is right is read.
    assert list(dict.fromkeys(_check(kind, _right(kind)))) == list(kind.tensors.declared)
    count = 0
    for reason, infos in _wrong(kind):
        with pytest.raises(MessageError, match=rf"^{kind.__name__}: .*{reason}"):
            _check(kind, infos)
        count += 1
    assert count > len(kind.tensors.declared)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind not in CARRYING], ids=lambda kind: kind.__name__)
def test_a_message_without_a_declaration_carries_none(kind: type[Message]) -> None:
    assert _check(kind, []) == []
    with pytest.raises(MessageError, match="1 tensors, expected 0"):
        _check(kind, [TensorInfo("float32", (3,))])


def test_sizes_of_one_name_agree() -> None:
    declared = Tensors(
        values=TensorSpec(torch.float32, ("rows", None)), rows=Optional(TensorSpec(torch.int64, ("rows",)))
    )
    values = TensorInfo("float32", (2, 5))
    assert declared.names_of("X", [values, TensorInfo("int64", (2,))]) == ["values", "rows"]
    assert declared.names_of("X", [values, None]) == ["values", "rows"]
    with pytest.raises(MessageError, match="X: rows has shape 3, expected 2"):
        declared.names_of("X", [values, TensorInfo("int64", (3,))])
    with pytest.raises(MessageError, match="X: values has shape 2, expected 2xany"):
        declared.names_of("X", [TensorInfo("float32", (2,)), None])


def test_a_group_takes_what_is_left_beside_the_others() -> None:
    declared = Tensors(
        group=Several(TensorSpec((torch.float32, torch.int32), ("rows", ...)), least=1, most=2),
        labels=Optional(TensorSpec(torch.int64, ("rows",))),
    )
    one, other = TensorInfo("float32", (2, 3, 4)), TensorInfo("int32", (2,))
    assert declared.names_of("X", [one, None]) == ["group", "labels"]
    assert declared.names_of("X", [one, other, TensorInfo("int64", (2,))]) == ["group", "group", "labels"]
    for infos, reason in (
        ([None], "group has 0 tensors, expected 1 to 2"),
        ([], "group has 0 tensors, expected 1 to 2"),
        ([one, one, one, None], "group has 3 tensors, expected 1 to 2"),
        ([one, None, None], "group is missing"),
        ([one, TensorInfo("int32", (3,)), None], "group has shape 3, expected 2"),
        ([TensorInfo("float32", ()), None], r"group has shape \(\), expected any"),
    ):
        with pytest.raises(MessageError, match=f"X: {reason}"):
            declared.names_of("X", infos)
    with pytest.raises(ValueError, match="at most one group"):
        Tensors(one=Several(TensorSpec(torch.int64)), two=Several(TensorSpec(torch.int64)))


def test_tensors_are_listed_in_the_order_of_the_declaration() -> None:
    declared = Tensors(one=Optional(TensorSpec(torch.int64)), two=Several(TensorSpec(torch.int64)))
    two = [torch.zeros(1), torch.zeros(2)]
    assert declared.in_order("X", {"two": two, "one": None}) == [None, *two]
    assert declared.in_order("X", {}) == [None]
    with pytest.raises(MessageError, match="X: three is not declared, one, two are"):
        declared.in_order("X", {"three": two[0]})
