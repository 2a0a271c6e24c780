"""Results as files: what was measured, with which command and on which machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from splitsec.cli.common import write_json

LIBRARIES = ("splitsec", "torch", "numpy", "pyzmq", "numba", "crypten", "opacus")


@dataclass(frozen=True)
class Machine:
    """The machine block of a result."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    libraries: dict[str, str]


def this_machine() -> Machine:
    """Describe this machine; nothing that names it or its owner."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries={name: version(name) for name in LIBRARIES},
    )


def write_result(path: Path | None, records: Sequence[Any], *, benchmark: str, arguments: Sequence[str]) -> None:
    """Write a result that `compare` reads.

    Args:
        path: the file; None writes none.
        records: dataclasses.
        benchmark: its name, such as `inference`.
        arguments: those of the command.
    """
    if path is None:
        return
    content = {
        "command": " ".join([f"python -m benchmarks.{benchmark}", *arguments]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": asdict(this_machine()),
        "records": [asdict(record) for record in records],
    }
    write_json(path, content)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or sys.platform)
