"""The server's side of encrypted prediction: compiled programs, and a worker process a session."""

from __future__ import annotations

import copy
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import fx

from splitsec.errors import MessageError, RangeError, RefusedError
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.prg import SEED_BYTES
from splitsec.mpc.program import Program, Reveal, Weights
from splitsec.parties.contributing import joined_shape
from splitsec.parties.names import DEALER
from splitsec.parties.pool import WorkerPool
from splitsec.parties.worker import Job
from splitsec.training.messages import OpenSession, SessionOpened, Share
from splitsec.transport import KeyPair

log = logging.getLogger(__name__)
_Wanted: TypeAlias = tuple[tuple[int, ...], Reveal, bool, ComparisonKind]


class PredictionService:
    """Opens prediction sessions for clients; each has its own worker process, socket and seeds.

    Args:
        pool: where workers come from.
        host: the interface to listen on for sessions, such as `127.0.0.1`.
        processors: those that workers may use, each keeping to one of them in turn; None leaves it to the kernel.
        limit: how many sessions may be open at once; a client may have half of them.
        given: without a tail, what clients gave in parts: by input shape the program and its masked weights.
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        pool: WorkerPool,
        keys: KeyPair,
        peers: Mapping[str, bytes],
        dealer_address: str,
        host: str,
        timeout: float,
        calibration: torch.Tensor | None = None,
        processors: Sequence[int] | None = None,
        limit: int = 16,
        given: Mapping[tuple[int, ...], tuple[Program, dict[int, Weights]]] | None = None,
    ) -> None:
        self._tail = None if tail is None else copy.deepcopy(tail).eval()
        self._given = given or {}
        self._pool = pool
        self._keys = keys
        self._peers = peers
        self._dealer_address = dealer_address
        self._host = host
        self._timeout = timeout
        self._limit = limit
        self._calibration = calibration
        self._processors = tuple(processors or ())
        self._compiled: dict[_Wanted, tuple[Program, dict[int, Weights]]] = {}

    def open(
        self, client: str, wanted: OpenSession, *, join: str = "", shares: tuple[Share, ...] = ()
    ) -> tuple[SessionOpened, int]:
        """Compile the tail for the client's shape and start a worker whose socket admits this client alone.

        Args:
            join, shares: where clients' activations are joined: how, and whose features are where.

        Returns:
            The answer to the client, and the port for contributions, 0 if there are none.

        Raises:
            UnsupportedLayerError, RangeError, MessageError: the tail cannot run encrypted on this shape.
            RefusedError: too many sessions are open.
        """
        if len(wanted.pair_seed) != SEED_BYTES:
            raise MessageError(f"a pair seed has {SEED_BYTES} bytes, not {len(wanted.pair_seed)}")
        if not wanted.shape or any(not 0 < size < 1 << 20 for size in wanted.shape):
            raise MessageError(f"an activation cannot have shape {wanted.shape}")
        alive = self._pool.alive()
        if len(alive) >= self._limit or list(alive.values()).count(client) >= self._limit // 2:
            raise RefusedError(f"{len(alive)} prediction sessions are open already; try again later")
        shape = joined_shape(shares, wanted.shape[0]) if shares else wanted.shape
        key = shape, wanted.reveal, wanted.checked, wanted.comparison
        if key not in self._compiled:
            self._compiled[key] = self._compile(*key)
        program, weights = self._compiled[key]
        session = secrets.token_hex(16)
        job = Job(
            session=session,
            client=client,
            client_key=self._peers[client],
            public_key=self._keys.public,
            secret_key=self._keys.secret,
            dealer=self._dealer_address,
            dealer_key=self._peers[DEALER],
            host=self._host,
            timeout=self._timeout,
            pair_seed=wanted.pair_seed,
            program=program,
            layers=tuple(weights),
            threads=torch.get_num_threads(),
            processors=self._processors,
            processor=self._processor(),
            join=join,
            shares=shares,
            contributors=tuple((one.client, self._peers[one.client]) for one in shares if one.client != client),
        )
        tensors = [part for one in weights.values() for part in (one.weight, one.bias)]
        port, contributions = self._pool.start(job, tensors)
        return SessionOpened(session=session, port=port, program=program, shares=shares), contributions

    def _processor(self) -> int | None:
        return self._processors[self._pool.free_slot() % len(self._processors)] if self._processors else None

    def _compile(
        self, shape: tuple[int, ...], reveal: Reveal, checked: bool, comparison: ComparisonKind
    ) -> tuple[Program, dict[int, Weights]]:
        if self._tail is None:
            return self._whole(shape, reveal, checked, comparison)
        try:
            program, weights = compile_tail(
                self._tail,
                shape,
                calibration=self._calibration,
                reveal=reveal,
                checked=checked,
                comparison=comparison,
            )
        except RangeError as error:
            # The value is the server's; the client learns that there is one.
            log.warning("the tail cannot run encrypted: %s", error)
            raise RangeError(
                "the tail's weights are out of range for fixed point; the server's log names them"
            ) from None
        return program, encode_weights(program, weights)

    def _whole(
        self, shape: tuple[int, ...], reveal: Reveal, checked: bool, comparison: ComparisonKind
    ) -> tuple[Program, dict[int, Weights]]:
        if reveal != "logits" or checked or comparison != "tables":
            raise RefusedError("a model that clients gave in parts answers with logits, unchecked, by tables")
        if shape not in self._given:
            known = " or ".join("x".join(map(str, one)) for one in self._given)
            raise RefusedError(
                f"the parts of the model are made for inputs of {known}, not {'x'.join(map(str, shape))}"
            )
        return self._given[shape]

    @property
    def active(self) -> bool:
        """Whether a session is still open."""
        return bool(self._pool.alive())
