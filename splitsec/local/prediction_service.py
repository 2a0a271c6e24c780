"""A dealer and a server on this machine that only answer encrypted predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from splitsec.cut import origin_of
from splitsec.cut.segment_files import save_segment
from splitsec.local.processes import PartyGroup
from splitsec.mpc.ring import PRECISION_BITS
from splitsec.party_names import DEALER, SERVER
from splitsec.settings.parties import DealerConfig, ServerConfig
from splitsec.settings.toml import write_config
from splitsec.tensors import write_tensors
from splitsec.transport import make_keys

START_SECONDS = 120.0


@dataclass(frozen=True)
class Service:
    """What a server serves.

    Attributes:
        source: the model, as `load_model` takes it.
        tail: its tail with the weights to serve.
        calibration: activations to measure bounds on, where the weights guarantee none.
        threads: of a process.
    """

    source: str
    cut: str
    tail: fx.GraphModule
    calibration: torch.Tensor | None = None
    threads: int = 1


def start_service(
    group: PartyGroup,
    directory: Path,
    service: Service,
    clients: Sequence[str],
    *,
    reach: Callable[[str], str] | None = None,
    timeout: float = 60.0,
    cpu: int | None = None,
) -> tuple[str, str]:
    """Make keys for all in `directory / "keys"`, start a dealer and a server; their addresses.

    Args:
        clients: the names of at least two clients.
        reach: turns the dealer's address into the one to connect to.
        timeout, cpu: of the server.
    """
    make_keys(directory / "keys", [DEALER, SERVER, *clients])
    save_segment(
        directory / "tail",
        service.tail.state_dict(),
        role="tail",
        party=SERVER,
        cut=service.cut,
        origin=origin_of(service.tail),
    )
    write_config(directory / "dealer.toml", DealerConfig(address="tcp://127.0.0.1:*", threads=service.threads))
    group.start(DEALER, DEALER, directory / "dealer.toml")
    dealer = group.wait_listening(DEALER, START_SECONDS)
    dealer = dealer if reach is None else reach(dealer)
    if service.calibration is not None:
        write_tensors(directory / "calibration", {"activations": service.calibration})
    config = ServerConfig(
        address="tcp://127.0.0.1:*",
        dealer=dealer,
        model=service.source,
        cut=service.cut,
        clients=tuple(clients),
        epochs=0,
        weights="tail",
        calibration=None if service.calibration is None else "calibration",
        stay=True,
        # Beside the plain model, on one machine: what the engine computes, to its last digit.
        answer_bits=PRECISION_BITS,
        timeout=timeout,
        threads=service.threads,
        cpu=cpu,
    )
    write_config(directory / "server.toml", config)
    group.start(SERVER, SERVER, directory / "server.toml")
    return dealer, group.wait_listening(SERVER, START_SECONDS)
