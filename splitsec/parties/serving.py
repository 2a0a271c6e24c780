"""The server's side of encrypted prediction: a worker process a session, and how many each client may have."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping, Sequence

import torch

from splitsec.errors import MessageError, RefusedError
from splitsec.mpc.prg import SEED_BYTES
from splitsec.mpc.program import Reveal
from splitsec.parties.allowance import AnswerRules
from splitsec.parties.contributing import joined_shape
from splitsec.parties.names import DEALER
from splitsec.parties.pool import WorkerPool
from splitsec.parties.programs import Programs, Wanted
from splitsec.parties.worker import Job
from splitsec.training.messages import OpenSession, SessionOpened, Share
from splitsec.transport import KeyPair

log = logging.getLogger(__name__)
# Of one query's activation: to compile the tail for more would keep everybody else waiting.
MOST_ELEMENTS = 1 << 23
# Of sessions that a client may have open at once, however many clients there are.
LEAST_SHARE = 2


class PredictionService:
    """Opens prediction sessions for clients; each has its own worker process, socket and seeds.

    Args:
        programs: of the tail.
        pool: where workers come from.
        clients: who may ask. Each may have an equal share of `limit` open sessions, and two at least, so that nobody
            can take another's; who wants more than its share loses its oldest session that rests.
        host: the interface to listen on for sessions, such as `127.0.0.1`.
        processors: those that workers may use, each keeping to one of them in turn; None leaves it to the kernel.
        rules: what clients may ask.
    """

    def __init__(
        self,
        programs: Programs,
        *,
        pool: WorkerPool,
        clients: Sequence[str],
        keys: KeyPair,
        peers: Mapping[str, bytes],
        dealer_address: str,
        host: str,
        timeout: float,
        processors: Sequence[int] | None = None,
        limit: int = 16,
        rules: AnswerRules | None = None,
    ) -> None:
        self._programs = programs
        self._pool = pool
        self._keys = keys
        self._peers = peers
        self._dealer_address = dealer_address
        self._host = host
        self._timeout = timeout
        self._share = max(LEAST_SHARE, limit // max(1, len(clients)))
        self._processors = tuple(processors or ())
        self._rules = AnswerRules() if rules is None else rules
        self._book = self._rules.book()

    def calibrate(self, client: str, activations: torch.Tensor) -> None:
        """Measure a client's bounds on activations of noise, see `Programs.calibrate`."""
        self._programs.calibrate(client, activations)

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
            RefusedError: too many of the client's sessions are open, and in use; or it may not ask for this.
            BudgetError: the client has had as many predictions as it may have.
        """
        if len(wanted.pair_seed) != SEED_BYTES:
            raise MessageError(f"a pair seed has {SEED_BYTES} bytes, not {len(wanted.pair_seed)}")
        shape = joined_shape(shares, wanted.shape[0]) if shares and wanted.shape else wanted.shape
        if not shape or any(not 0 < size < 1 << 20 for size in shape):
            raise MessageError(f"an activation cannot have shape {shape}")
        if math.prod(shape) > MOST_ELEMENTS:
            raise MessageError(
                f"an activation of shape {'x'.join(map(str, shape))} has more than {MOST_ELEMENTS} elements; ask for "
                "smaller batches"
            )
        left = self._check_rules(client, wanted.reveal, shape[0])
        self._check_share(client)
        compiled = self._programs.get(Wanted(shape, wanted.reveal, wanted.checked, wanted.comparison), client)
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
            program=compiled.program,
            layers=compiled.layers,
            tensors=compiled.digests,
            threads=torch.get_num_threads(),
            processors=self._processors,
            processor=self._processor(),
            join=join,
            shares=shares,
            contributors=tuple((one.client, self._peers[one.client]) for one in shares if one.client != client),
            ports=self._rules.ports,
            counts="" if self._book is None else str(self._rules.directory),
            predictions=self._rules.predictions or 0,
        )
        port, contributions = self._pool.start(job, compiled.tensors)
        log.info("session %s of %s opened for activations of %s", session[:8], client, "x".join(map(str, shape)))
        opened = SessionOpened(session=session, port=port, program=compiled.program, shares=shares, left=left)
        return opened, contributions

    def _check_rules(self, client: str, reveal: Reveal, rows: int) -> int | None:
        """How many predictions the client has left, None for any number."""
        if self._rules.answers == "label" and reveal != "label":
            raise RefusedError('the server answers with labels only; ask with reveal = "label"')
        return None if self._book is None else self._book.check(client, rows)

    def _check_share(self, client: str) -> None:
        mine = list(self._pool.alive().values()).count(client)
        if mine >= self._share and not self._pool.make_way(client):
            raise RefusedError(
                f"{client} has {mine} prediction sessions open, its share, and all are in use; close one, or try again "
                "later"
            )

    def _processor(self) -> int | None:
        return self._processors[self._pool.free_slot() % len(self._processors)] if self._processors else None

    @property
    def active(self) -> bool:
        """Whether a session is still open."""
        return bool(self._pool.alive())
