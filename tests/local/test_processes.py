"""What a launcher leaves behind: nothing."""

import signal
import subprocess
import time
from pathlib import Path

from splitsec.local import processes
from splitsec.local.processes import PartyProcess


def _party(script: str) -> PartyProcess:
    """A party that is a shell script, as `PartyProcess` starts it."""
    party = PartyProcess.__new__(PartyProcess)
    party.name = "party"
    party.process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    return party


def _members(group: int) -> list[int]:
    """Return the processes of a group that live."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            with (entry / "stat").open() as file:
                state, _, number = file.read().rsplit(")", 1)[1].split()[:3]
        except (OSError, IndexError):
            continue
        if int(number) == group and state != "Z":
            members.append(int(entry.name))
    return members


def test_processes_that_a_party_leaves_are_killed_with_it() -> None:
    party = _party("trap '' TERM; sleep 300 & exit 0")
    party.process.wait()
    # Control: the party itself has ended, its child has not.
    assert _members(party.process.pid)
    party.signal(signal.SIGTERM)
    party.wait_all(time.monotonic() + 0.3)
    deadline = time.monotonic() + 10
    while _members(party.process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_party_and_its_children_have_the_time_to_end_by_themselves() -> None:
    party = _party("trap 'sleep 0.3; echo ended; exit 0' TERM; echo ready; while true; do sleep 0.05; done")
    assert party.process.stdout is not None
    assert party.process.stdout.readline() == "ready\n"
    party.signal(signal.SIGTERM)
    party.wait_all(time.monotonic() + processes.STOP_SECONDS)
    assert party.process.stdout.read() == "ended\n"
    assert party.process.returncode == 0
