"""The end of a worker: the first signal says why, and the alarm ends what hangs."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORKER = """
import os, signal, sys, time
from splitsec.errors import RefusedError
from splitsec.prediction.server import session_end
session_end.QUERY_SECONDS = session_end.TELL_SECONDS = 0.2
ending = session_end.Ending()
ending.listen()
ending.check()
for name in sys.argv[2:]:
    os.kill(os.getpid(), getattr(signal, name))
try:
    if sys.argv[1] == "idle":
        ending.check()
    time.sleep(20)
    print("slept")
except RefusedError as error:
    print(error, flush=True)
if sys.argv[1] == "hangs":
    time.sleep(20)
    print("slept")
"""


def _worker(how: str, *signals: str) -> tuple[int, str]:
    command = [sys.executable, "-c", WORKER, how, *signals]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        (("SIGTERM",), "the server is stopping"),
        (("SIGUSR1",), "the session made way for a newer one of the same client"),
        (("SIGUSR1", "SIGTERM"), "the session made way for a newer one of the same client"),
    ],
)
def test_a_worker_between_queries_ends_for_the_reason_of_the_first_signal(
    signals: tuple[str, ...], reason: str
) -> None:
    assert _worker("idle", *signals) == (0, reason)


def test_a_query_that_hangs_is_ended_and_then_the_process() -> None:
    code, said = _worker("hangs", "SIGTERM")
    assert said == "the server is stopping"
    assert code == -14
