"""Stock CrypTen 0.4.1 as it comes, and with one thread a process; see `crypten_peer`."""

from __future__ import annotations

import os
import sys

from benchmarks.engines.base import ENGINES
from benchmarks.engines.processes import PeerProcesses, free_port
from splitsec.apps.workload import Workload


def stock_crypten(work: Workload, processors: set[int], *, threads: int | None, engine: str) -> PeerProcesses:
    """Start two parties and the trusted third party of stock CrypTen.

    Args:
        threads: of each process; None leaves CrypTen as it comes, with torch's default.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engines.crypten_peer"]
    port = str(free_port())
    return PeerProcesses(
        work,
        [[*command, str(rank), port, work.model.name, str(work.batch)] for rank in range(3)],
        engine=engine,
        provider="TTP",
        environment=environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)},
        processors=processors,
    )


ENGINES.register("crypten")(lambda work, processors: stock_crypten(work, processors, threads=None, engine="crypten"))
ENGINES.register("crypten-1")(lambda work, processors: stock_crypten(work, processors, threads=1, engine="crypten-1"))
