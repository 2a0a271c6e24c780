"""Encrypted predictions at the server: each session has a worker process, and each client a share of the sessions."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from splitsec.errors import MessageError, RefusedError
from splitsec.mpc.prg import SEED_BYTES
from splitsec.mpc.program.program import Reveal
from splitsec.mpc.protocols.comparison import COMPARISONS
from splitsec.party_names import DEALER
from splitsec.prediction.joint_inputs import joined_shape
from splitsec.prediction.messages import OpenSession, SessionOpened, Share
from splitsec.prediction.server.allowance import open_book
from splitsec.prediction.server.programs import ProgramKey, Programs
from splitsec.prediction.server.worker import Job
from splitsec.prediction.server.worker_pool import WorkerPool
from splitsec.settings.answers import AnswerRules
from splitsec.transport import KeyPair

log = logging.getLogger(__name__)
# Of one query's activation: to compile the tail for more would keep all other clients waiting.
MOST_ELEMENTS = 1 << 23
# Of sessions that a client may have open at once, however many clients there are.
LEAST_SHARE = 2


@dataclass(frozen=True)
class SessionNetwork:
    """Keys and addresses that a session's sockets need.

    Attributes:
        keys: the server's key pair.
        peers: public keys of the dealer and the clients by name.
        dealer: the dealer's address.
        host: the interface to listen on for sessions, such as `127.0.0.1`.
        timeout: seconds that a client or the dealer may be silent.
    """

    keys: KeyPair
    peers: Mapping[str, bytes]
    dealer: str
    host: str
    timeout: float


class PredictionService:
    """Opens prediction sessions for clients; each has its own worker process, socket and seeds.

    Args:
        programs: of the tail.
        pool: starts the workers.
        clients: those that may ask. Each may have an equal share of `limit` open sessions, and two at least, so that
            none can take another's; a client that wants more loses its oldest session that rests.
        processors: those that workers may use, each keeping to one of them in turn; None leaves it to the kernel.
        rules: what clients may ask.
    """

    def __init__(
        self,
        programs: Programs,
        *,
        pool: WorkerPool,
        clients: Sequence[str],
        network: SessionNetwork,
        processors: Sequence[int] | None = None,
        limit: int = 16,
        rules: AnswerRules | None = None,
    ) -> None:
        self._programs = programs
        self._pool = pool
        self._network = network
        self._share = max(LEAST_SHARE, limit // max(1, len(clients)))
        self._processors = tuple(processors or ())
        self._rules = AnswerRules() if rules is None else rules
        self._book = open_book(self._rules)

    def calibrate(self, client: str, activations: torch.Tensor) -> None:
        """Measure a client's bounds on activations of noise, see `Programs.calibrate`."""
        self._programs.calibrate(client, activations)

    def open(
        self, client: str, request: OpenSession, *, join: str = "", shares: tuple[Share, ...] = ()
    ) -> tuple[SessionOpened, int]:
        """Compile the tail for the client's shape and start a worker whose socket admits this client alone.

        Args:
            join, shares: where clients' activations are joined: how, and where each client's features are.

        Returns:
            The answer to the client, and the port for contributions, 0 if there are none.

        Raises:
            UnsupportedLayerError, RangeError, MessageError: the tail cannot run encrypted on this shape.
            ConfigError: the comparison is not known here.
            RefusedError: too many of the client's sessions are open, and in use; or it may not ask for this.
            BudgetError: the client has had as many predictions as it may have.
        """
        if len(request.pair_seed) != SEED_BYTES:
            raise MessageError(f"a pair seed has {SEED_BYTES} bytes, not {len(request.pair_seed)}")
        shape = joined_shape(shares, request.shape[0]) if shares and request.shape else request.shape
        if not shape or any(not 0 < size < 1 << 20 for size in shape):
            raise MessageError(f"an activation cannot have shape {shape}")
        if math.prod(shape) > MOST_ELEMENTS:
            raise MessageError(
                f"an activation of shape {'x'.join(map(str, shape))} has more than {MOST_ELEMENTS} elements; ask for "
                "smaller batches"
            )
        COMPARISONS.get(request.comparison)
        left = self._check_rules(client, request.reveal, shape[0])
        self._check_share(client)
        compiled = self._programs.get(
            ProgramKey(shape, request.reveal, request.checked, request.comparison, request.engine), client
        )
        session, network = secrets.token_hex(16), self._network
        job = Job(
            session=session,
            client=client,
            client_key=network.peers[client],
            public_key=network.keys.public,
            secret_key=network.keys.secret,
            dealer=network.dealer,
            dealer_key=network.peers[DEALER],
            host=network.host,
            timeout=network.timeout,
            pair_seed=request.pair_seed,
            program=compiled.program,
            layers=compiled.layers,
            digests=compiled.digests,
            threads=torch.get_num_threads(),
            processors=self._processors,
            processor=self._processor(),
            join=join,
            shares=shares,
            contributors=tuple(
                (share.client, network.peers[share.client]) for share in shares if share.client != client
            ),
            ports=self._rules.ports,
            counts="" if self._book is None else str(self._rules.directory),
            predictions=self._rules.predictions_per_client or 0,
        )
        port, contributions = self._pool.start(job, compiled.tensors)
        log.info("session %s of %s opened for activations of %s", session[:8], client, "x".join(map(str, shape)))
        opened = SessionOpened(session=session, port=port, program=compiled.program, shares=shares, left=left)
        return opened, contributions

    def _check_rules(self, client: str, reveal: Reveal, rows: int) -> int | None:
        """Return how many predictions the client has left, None for any number."""
        if self._rules.answers == "label" and reveal != "label":
            raise RefusedError('the server answers with labels only; ask with reveal = "label"')
        return None if self._book is None else self._book.check(client, rows)

    def _check_share(self, client: str) -> None:
        count = list(self._pool.alive().values()).count(client)
        if count >= self._share and not self._pool.make_way(client):
            raise RefusedError(
                f"{client} has {count} prediction sessions open, its share, and all are in use; close one, or try "
                "again later"
            )

    def _processor(self) -> int | None:
        return self._processors[self._pool.free_slot() % len(self._processors)] if self._processors else None

    def hear_workers(self) -> bool:
        """Take what the workers report, log which sessions have ended, and return whether one is still open."""
        return bool(self._pool.alive())
