"""The few objects from which servers, clients and dealers are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.errors import AuthenticationError
from splitsec.events import Report, ignore
from splitsec.settings.answers import AnswerRules
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.setting import part_of
from splitsec.settings.timeouts import Timeouts
from splitsec.transport import KeyPair, load_key_pair, load_public_keys

if TYPE_CHECKING:
    import torch

    from splitsec.prediction.server.worker_pool import WorkerPool


@dataclass(frozen=True, kw_only=True)
class Network:
    """How a party reaches the others.

    Attributes:
        keys: its own key pair, whose name is the party's.
        peers: public keys of the others by name; those of the server and the dealer under `server` and `dealer`.
        address: where a server or a dealer listens, such as `tcp://127.0.0.1:5555`; port `*` takes a free one.
        server: the server's address, at a client.
        dealer: the dealer's address, at a client and the server.
        timeouts: how long to wait for others.
        reach: turns the address of a prediction session's socket into the one to connect to, where a gateway lies
            between client and server.
    """

    keys: KeyPair
    peers: Mapping[str, bytes] = field(repr=False)
    address: str = ""
    server: str = ""
    dealer: str = ""
    timeouts: Timeouts = field(default_factory=Timeouts)
    reach: Callable[[str], str] | None = None

    def check_peers(self, *names: str) -> None:
        """Raise `AuthenticationError` that lists those of `names` whose public key is missing."""
        missing = [name for name in names if name not in self.peers]
        if missing:
            raise AuthenticationError(f"no public key of {', '.join(missing)}; put NAME.key into the key directory")


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What a party keeps for itself between its starts; by default nothing.

    Attributes:
        checkpoints: a directory of the party's own; a run that was killed goes on from the last round that all its
            parties have finished. The dealer's says which rounds it has opened for whom.
        ledgers: at a client, a directory for the ledger of what runs cost this client's privacy; None puts it beside
            the checkpoints, if there are any. Keep those of all runs over the same data in one: they are added up.
        epsilon_limit: at a client, what all runs with a ledger there may spend together of any record, at the run's
            delta; a run that would spend more is refused before its first step. 0 for no limit.
    """

    checkpoints: Path | None = None
    ledgers: Path | None = None
    epsilon_limit: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a party runs in its process.

    Attributes:
        seed: at the server, of dropout and the like in the tail while training; None for a random one.
        processors: those that prediction sessions and the making of randomness may use; None leaves it to the kernel.
        report: called with every event.
    """

    seed: int | None = None
    processors: Sequence[int] | None = None
    report: Report = ignore


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server answers predictions.

    Attributes:
        rules: what clients may ask.
        calibration: activations (N, ...), float32, of no client, from which the bounds of a deep tail's values are
            measured; without them the bounds are computed from the weights.
        pool: where the workers of prediction sessions come from, if several servers of a process share one; whoever
            made it closes it.
    """

    rules: AnswerRules = field(default_factory=AnswerRules)
    calibration: torch.Tensor | None = field(default=None, repr=False)
    pool: WorkerPool | None = None


def network_of(config: DealerConfig | ServerConfig | ClientConfig, base: Path, name: str) -> Network:
    """Return how the party of a TOML file reaches the others; paths in it are relative to `base`."""
    keys = load_key_pair(base / config.keys, name)
    peers = load_public_keys(base / config.keys)
    if isinstance(config, DealerConfig):
        return Network(keys=keys, peers=peers, address=config.address)
    if isinstance(config, ServerConfig):
        timeouts = part_of(config, Timeouts)
        return Network(keys=keys, peers=peers, address=config.address, dealer=config.dealer, timeouts=timeouts)
    timeouts = Timeouts(timeout=config.timeout, join_timeout=config.join_timeout)
    return Network(keys=keys, peers=peers, server=config.server, dealer=config.dealer, timeouts=timeouts)


def storage_of(config: DealerConfig | ServerConfig | ClientConfig, base: Path) -> Storage:
    """Return where the party of a TOML file keeps what outlives it."""
    checkpoints = None if config.checkpoints is None else base / config.checkpoints
    if not isinstance(config, ClientConfig):
        return Storage(checkpoints=checkpoints)
    ledgers = config.out if config.ledgers is None else config.ledgers
    return Storage(
        checkpoints=checkpoints,
        ledgers=None if ledgers is None else base / ledgers,
        epsilon_limit=config.epsilon_limit,
    )
