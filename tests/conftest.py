"""Shared fixtures: where the optional real data lies, and the helpers beside the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is there, and for all processes that tests start: on few processors threads of many wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from support import parties_in_threads


@pytest.fixture(scope="session", autouse=True)
def _one_forker() -> Iterator[None]:
    """Servers in threads of the tests share one pool of workers: to start one for each takes three seconds."""
    yield
    parties_in_threads.close_pool()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with MNIST and trained weights; the test is skipped where there is none."""
    places = [Path(os.environ["SPLITSEC_DATA"])] if "SPLITSEC_DATA" in os.environ else []
    places.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    for place in places:
        if (place / "MNIST" / "raw").is_dir():
            return place
    pytest.skip("no real data here: set SPLITSEC_DATA to a directory with MNIST/raw and weights/")
