"""A server's compiled programs, and the weights that they share.

A program belongs to one shape; the weights in the ring do not, but for the digits that their layer has. So weights are
told apart by what they are, and many shapes have them once.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import torch
from torch import fx

from splitsec.errors import RangeError, RefusedError
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.program import Program, Reveal, Weights
from splitsec.mpc.ring import PRECISION_BITS

log = logging.getLogger(__name__)
# A program has a few kilobytes; one that is asked for again after so many others is compiled again.
MOST_PROGRAMS = 32
Given: TypeAlias = Mapping[tuple[int, ...], tuple[Program, dict[int, Weights]]]


class Wanted(msgspec.Struct, frozen=True):
    """What a program is compiled for: the whole activation's shape, and how the client asks.

    Where its ranges are measured on a client's activations of noise, `measured` is a digest of them: clients with equal
    fronts share a program, and no client's activations decide about another's.
    """

    shape: tuple[int, ...]
    reveal: Reveal
    checked: bool
    comparison: ComparisonKind
    measured: str = ""


@dataclass(frozen=True)
class Compiled:
    """A program and its weights: the digests of weight and bias of each of `layers`, and the tensors by digest."""

    program: Program
    layers: tuple[int, ...]
    digests: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)


class CalibrationNeeded(Exception):
    """The weights guarantee no ranges, and nothing has been measured."""


class Programs:
    """Compiles a tail for what clients want, and keeps what was wanted last.

    Args:
        tail: is copied, so that it may go on changing.
        calibration: as in `Server`.
        answer_bits: fractional bits of a result that are opened at most, as in `Server`.
        given: without a tail, what clients gave in parts: by input shape the program and its masked weights.
        most: how many programs are kept.
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        calibration: torch.Tensor | None = None,
        answer_bits: int = PRECISION_BITS,
        given: Given | None = None,
        most: int = MOST_PROGRAMS,
    ) -> None:
        self._tail = None if tail is None else copy.deepcopy(tail).eval()
        self._calibration = calibration
        self._answer_bits = answer_bits
        # By client, for its own programs alone: what one measures is nothing that others could rely on.
        self._measured: dict[str, torch.Tensor] = {}
        self._given = given or {}
        self._most = most
        # The longest unasked first.
        self._compiled: dict[Wanted, Compiled] = {}

    def calibrate(self, client: str, activations: torch.Tensor) -> None:
        """Measure a client's bounds on activations of noise where the weights guarantee none, and check every layer's
        range.

        The first of a client counts: bounds that could be asked for again and again would say more of the weights. Does
        nothing where there is a calibration.
        """
        if self._calibration is None:
            self._measured.setdefault(client, activations)

    def get(self, wanted: Wanted, client: str = "") -> Compiled:
        """The program for what is wanted.

        Args:
            client: who wants it, for its own bounds if it has measured some.

        Raises:
            CalibrationNeeded: the weights guarantee no ranges, see `calibrate`.
            UnsupportedLayerError, RangeError: the tail cannot run encrypted on this shape.
            RefusedError: a model that was given in parts is not made for it.
        """
        measured = self._measured.get(client)
        if measured is not None:
            own = msgspec.structs.replace(wanted, measured=tensor_digest(measured))
            wanted = own if wanted not in self._compiled else wanted
        compiled = self._compiled.pop(wanted, None)
        if compiled is None:
            program, weights = self._compile(wanted, measured) if self._tail is not None else self._whole(wanted)
            fewer = PRECISION_BITS - self._answer_bits
            opening = msgspec.structs.replace(program, answer_bits=max(0, program.answer_bits - fewer))
            compiled = self._share(opening, weights)
        self._compiled[wanted] = compiled
        if len(self._compiled) > self._most:
            del self._compiled[next(iter(self._compiled))]
        return compiled

    @property
    def weights_bytes(self) -> int:
        """What the encoded weights of all programs take in memory, each tensor counted once."""
        tensors = {name: one for compiled in self._compiled.values() for name, one in compiled.tensors.items()}
        return sum({one.data_ptr(): one.numel() * one.element_size() for one in tensors.values()}.values())

    def _share(self, program: Program, weights: Mapping[int, Weights]) -> Compiled:
        """Have the tensors of an earlier program in the place of equal ones."""
        known = {name: one for compiled in self._compiled.values() for name, one in compiled.tensors.items()}
        digests, tensors = [], {}
        for held in weights.values():
            for part in (held.weight, held.bias):
                digests.append(tensor_digest(part))
                tensors[digests[-1]] = known.get(digests[-1], part)
        return Compiled(program, tuple(weights), tuple(digests), tensors)

    def _compile(self, wanted: Wanted, measured: torch.Tensor | None) -> tuple[Program, dict[int, Weights]]:
        assert self._tail is not None
        calibration = self._calibration if measured is None else measured
        try:
            program, weights = compile_tail(
                self._tail,
                wanted.shape,
                calibration=calibration,
                reveal=wanted.reveal,
                checked=wanted.checked,
                comparison=wanted.comparison,
            )
            # Noise says less of what is to come than an operator's activations do, so ranges are checked.
            if measured is not None and not program.guaranteed and not wanted.checked:
                return self._compile(msgspec.structs.replace(wanted, checked=True), measured)
        except RangeError as error:
            if calibration is None:
                log.info("the weights guarantee no ranges (%s); they are measured on noise", error)
                raise CalibrationNeeded from None
            # The value is the server's; the client learns that there is one.
            log.warning("the tail cannot run encrypted: %s", error)
            raise RangeError(
                "the tail's weights do not suit fixed point: too large, or so small that values lose their digits; the "
                "server's log names them"
            ) from None
        return program, encode_weights(program, weights)

    def _whole(self, wanted: Wanted) -> tuple[Program, dict[int, Weights]]:
        if wanted.reveal != "logits" or wanted.checked or wanted.comparison != "tables":
            raise RefusedError("a model that clients gave in parts answers with logits, unchecked, by tables")
        if wanted.shape not in self._given:
            known = " or ".join("x".join(map(str, shape)) for shape in self._given)
            asked = "x".join(map(str, wanted.shape))
            raise RefusedError(f"the parts of the model are made for inputs of {known}, not {asked}")
        return self._given[wanted.shape]


def tensor_digest(tensor: torch.Tensor) -> str:
    """A name for what a tensor holds: dtype, shape and values."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
