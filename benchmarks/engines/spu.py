"""SPU (SecretFlow) at its best; see `spu_peer`, which runs in an environment of its own."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.engines.base import ENGINES
from benchmarks.engines.processes import PeerProcesses, free_port
from splitsec.apps.workload import Workload
from splitsec.cut import INPUT, SplitModel
from splitsec.errors import ConfigError
from splitsec.mpc.program.compile import compile_tail

SPU_PYTHON = "SPLITSEC_SPU_PYTHON"


def spu_at_its_best(work: Workload, processors: set[int]) -> PeerProcesses:
    """Start SPU with the number of threads, of 1, 2 and its default, that is fastest in a few runs; see `spu_peer`.

    Raises:
        ConfigError: the environment variable that names the Python with SPU is not set.
    """
    python = os.environ.get(SPU_PYTHON)
    if not python or not Path(python).exists():
        raise ConfigError(
            f"engine spu needs an environment of its own: make one with Python 3.11 and 'pip install "
            f"spu==0.10.0.dev20251211', and set {SPU_PYTHON} to its python"
        )
    tried = {}
    for threads in (None, 1, 2):
        with _spu(work, processors, python, threads) as peer:
            for _ in range(3):
                peer.run(count=False)
            for _ in range(5):
                peer.run(count=True)
            tried[threads] = statistics.median(peer.times)
    return _spu(work, processors, python, min(tried, key=tried.__getitem__))


def _spu(work: Workload, processors: set[int], python: str, threads: int | None) -> PeerProcesses:
    directory = Path(tempfile.mkdtemp(prefix="splitsec-spu-"))
    split = SplitModel(work.model.make(work.weights), INPUT).eval()
    x = work.inputs()
    program, weights = compile_tail(split.tail, tuple(x.shape), calibration=x)
    (directory / "steps.json").write_bytes(msgspec.json.encode(program.steps))
    with torch.no_grad():
        expected = split(x)
    arrays = {f"{number}_w": layer.weight.float().numpy() for number, layer in weights.items()}
    arrays |= {f"{number}_b": layer.bias.float().numpy() for number, layer in weights.items()}
    np.savez(directory / "arrays.npz", x=x.numpy(), expected=expected.numpy(), **arrays)  # type: ignore[arg-type]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    script = str(Path(__file__).with_name("spu_peer.py"))
    port = str(free_port())
    return PeerProcesses(
        work,
        # -P: the folder of the script, in which this module has the name of SPU's package, is no place to import from.
        [[python, "-P", script, str(rank), port, str(directory)] for rank in range(2)],
        engine="spu",
        provider="semi2k",
        environment=environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)},
        processors=processors,
        directory=directory,
    )


ENGINES.register("spu")(spu_at_its_best)
