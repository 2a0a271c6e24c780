"""What is measured, and what is recorded of it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from splitsec.advisor import Link
from splitsec.cut import INPUT
from splitsec.models.literature import BenchModel


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a run as the client sees it: median milliseconds, exact rounds and bytes both ways."""

    name: str
    op: str
    ms: float
    rounds: int
    bytes: int


@dataclass(frozen=True)
class Record:
    """One engine on one model and batch. Times are medians in milliseconds of the whole batch.

    `threads` are those of a process, 0 where the engine takes its own default. `steady_ms` is the time a query, offline
    and online, while the randomness of the next two is made ready. What an engine has not or does not tell is 0.
    """

    engine: str
    provider: str
    model: str
    cut: str
    batch: int
    runs: int
    threads: int
    plaintext_ms: float
    online_ms: float
    total_ms: float
    max_abs_error: float
    agreement: float
    offline_ms: float = 0.0
    steady_ms: float = 0.0
    rounds: int = 0
    hops: int = 0
    bytes_online_client: int = 0
    bytes_online_server: int = 0
    bytes_offline: int = 0
    floor_ms: float = 0.0
    ratio_to_floor: float = 0.0
    rtt_ms: float = 0.0
    comparison: str = ""
    link: Link | None = None
    layers: list[LayerRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """What is run: a model, a cut and a batch, and over what link if not loopback as it is."""

    model: BenchModel
    batch: int
    cut: str = INPUT
    weights: Path | None = None
    threads: int = 1
    link: Link | None = None

    def inputs(self) -> torch.Tensor:
        """Return the same images for every engine."""
        torch.manual_seed(1)
        return torch.randn(self.batch, *self.model.input_shape)


def plain_ms(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    """Return the median milliseconds of the model in plain, in this process."""
    times = []
    with torch.no_grad():
        for _ in range(20):
            began = time.perf_counter()
            model(inputs)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)
