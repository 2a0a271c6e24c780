"""A server's compiled programs, and the weights that they share.

A program belongs to one shape. Its weights in the ring depend on the shape through their layer's number of digits
alone, so they are named by a digest of their values, and programs of many shapes share them.
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
from splitsec.mpc.program.compile import CompileOptions, compile_tail, encode_weights
from splitsec.mpc.program.program import Engine, Program, Reveal, Weights
from splitsec.mpc.ring import PRECISION_BITS

log = logging.getLogger(__name__)
# A program has a few kilobytes; one that is asked for again after this many others is compiled again.
MOST_PROGRAMS = 32
Whole: TypeAlias = Mapping[tuple[int, ...], tuple[Program, dict[int, Weights]]]


class ProgramKey(msgspec.Struct, frozen=True):
    """Key of a program: the whole activation's shape, and how the client asks.

    Where its ranges are measured on a client's activations of noise, `measured` is a digest of them: clients with equal
    fronts share a program, and no client's activations decide about another's.
    """

    shape: tuple[int, ...]
    reveal: Reveal
    checked: bool
    comparison: str
    engine: Engine = "splitsec"
    measured: str = ""


@dataclass(frozen=True)
class Compiled:
    """A program and its weights: the digests of weight and bias of each of `layers`, and the tensors by digest."""

    program: Program
    layers: tuple[int, ...]
    digests: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)


class CalibrationNeededError(Exception):
    """The weights guarantee no ranges, and none have been measured."""


class Programs:
    """Programs of a tail, compiled when clients ask for them; the last ones are kept.

    Args:
        tail: is copied, so that it may go on changing.
        calibration: as in `Server`.
        answer_bits: fractional bits of a result that are opened at most, as in `Server`.
        whole: without a tail, what clients gave in parts: by input shape the program and its masked weights.
        most: how many programs are kept.
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        calibration: torch.Tensor | None = None,
        answer_bits: int = PRECISION_BITS,
        whole: Whole | None = None,
        most: int = MOST_PROGRAMS,
    ) -> None:
        self._tail = None if tail is None else copy.deepcopy(tail).eval()
        self._calibration = calibration
        self._answer_bits = answer_bits
        # By client, for its own programs alone: others cannot rely on what it measures.
        self._measured: dict[str, torch.Tensor] = {}
        self._whole = whole or {}
        self._most = most
        # The longest unasked first.
        self._compiled: dict[ProgramKey, Compiled] = {}

    def calibrate(self, client: str, activations: torch.Tensor) -> None:
        """Measure a client's bounds on activations of noise where the weights guarantee none.

        Such programs check every layer's range. The first activations of a client count: bounds that could be asked for
        again and again would say more about the weights. Does nothing where there is a calibration.
        """
        if self._calibration is None:
            self._measured.setdefault(client, activations)

    def get(self, key: ProgramKey, client: str = "") -> Compiled:
        """Return the program for what a client wants.

        Args:
            client: its name, for its own bounds if it has measured some.

        Raises:
            CalibrationNeededError: the weights guarantee no ranges, see `calibrate`.
            UnsupportedLayerError, RangeError: the tail cannot run encrypted on this shape.
            RefusedError: a model that was given in parts is not made for it.
        """
        measured = self._measured.get(client)
        if measured is not None:
            own = msgspec.structs.replace(key, measured=tensor_digest(measured))
            key = own if key not in self._compiled else key
        compiled = self._compiled.pop(key, None)
        if compiled is None:
            program, weights = self._compile(key, measured) if self._tail is not None else self._program_of_whole(key)
            fewer = PRECISION_BITS - self._answer_bits
            opening = msgspec.structs.replace(program, answer_bits=max(0, program.answer_bits - fewer))
            compiled = self._share(opening, weights)
        self._compiled[key] = compiled
        if len(self._compiled) > self._most:
            del self._compiled[next(iter(self._compiled))]
        return compiled

    @property
    def weights_bytes(self) -> int:
        """Return how many bytes the encoded weights of all programs take, each tensor counted once."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self._tensors().values()}.values())

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of all programs by their digests."""
        return {digest: tensor for compiled in self._compiled.values() for digest, tensor in compiled.tensors.items()}

    def _share(self, program: Program, weights: Mapping[int, Weights]) -> Compiled:
        """Return a program whose tensors are those of an earlier program where they are equal."""
        known = self._tensors()
        digests, tensors = [], {}
        for layer in weights.values():
            for tensor in (layer.weight, layer.bias):
                digests.append(tensor_digest(tensor))
                tensors[digests[-1]] = known.get(digests[-1], tensor)
        return Compiled(program, tuple(weights), tuple(digests), tensors)

    def _compile(self, key: ProgramKey, measured: torch.Tensor | None) -> tuple[Program, dict[int, Weights]]:
        assert self._tail is not None
        calibration = self._calibration if measured is None else measured
        try:
            program, weights = compile_tail(
                self._tail,
                key.shape,
                CompileOptions(reveal=key.reveal, checked=key.checked, comparison=key.comparison, engine=key.engine),
                calibration=calibration,
            )
            # Noise is less like the activations to come than an operator's own are, so ranges are checked.
            if measured is not None and not program.guaranteed and not key.checked:
                return self._compile(msgspec.structs.replace(key, checked=True), measured)
        except RangeError as error:
            if calibration is None:
                log.info("the weights guarantee no ranges (%s); they are measured on noise", error)
                raise CalibrationNeededError from None
            # The value is the server's; the client learns that there is one.
            log.warning("the tail cannot run encrypted: %s", error)
            raise RangeError(
                "the tail's weights do not suit fixed point: too large, or so small that values lose their digits; the "
                "server's log names them"
            ) from None
        return program, encode_weights(program, weights)

    def _program_of_whole(self, key: ProgramKey) -> tuple[Program, dict[int, Weights]]:
        if (key.reveal, key.checked, key.comparison, key.engine) != ("logits", False, "tables", "splitsec"):
            raise RefusedError(
                "a model that clients gave in parts answers with logits, unchecked, by tables, through our protocols"
            )
        if key.shape not in self._whole:
            known = " or ".join("x".join(map(str, shape)) for shape in self._whole)
            asked = "x".join(map(str, key.shape))
            raise RefusedError(f"the parts of the model are made for inputs of {known}, not {asked}")
        return self._whole[key.shape]


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return a name for a tensor by its dtype, shape and values."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
