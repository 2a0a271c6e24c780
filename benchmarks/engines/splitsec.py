"""splitsec itself: a server and a dealer in processes of their own, the client in this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.engines.base import ENGINES, Engine
from benchmarks.slow_link import SlowLink
from splitsec.apps.latency import our_parties
from splitsec.apps.workload import Workload


@contextlib.contextmanager
def _start(work: Workload, comparison: str) -> Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        reach = None
        if work.link is not None:
            reach = stack.enter_context(SlowLink(work.link.rtt_ms, work.link.mbit_s)).to
        yield stack.enter_context(our_parties(work, comparison, reach=reach))


ENGINES.register("splitsec")(lambda work, _processors: _start(work, "tables"))
ENGINES.register("splitsec-dcf")(lambda work, _processors: _start(work, "dcf"))
