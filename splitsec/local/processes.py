"""Party processes of this machine: started, listened to, and always cleaned up."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from splitsec import errors
from splitsec.errors import PartyTimeoutError, SplitsecError
from splitsec.events import AnyEvent, Failed, Finished, Listening, from_json_line

# After SIGTERM; a server takes a few seconds for the queries that run.
STOP_SECONDS = 8.0


class PartyProcess:
    """One party in a process of its own, whose events come as lines on its standard output."""

    def __init__(self, role: str, name: str, config: Path, events: queue.Queue[AnyEvent | PartyExit]) -> None:
        self.name = name
        self.log = config.with_suffix(".log")
        command = [sys.executable, "-m", "splitsec", role, "--config", str(config), "--events", "json"]
        command += ["--end-with-input"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                # A process group of its own: Ctrl-C in the terminal reaches the launcher, which ends the parties.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()

    def _read(self, events: queue.Queue[AnyEvent | PartyExit]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = from_json_line(line)
            if event is not None:
                events.put(event)
        events.put(PartyExit(self.name, self.process.wait()))

    def signal(self, number: int) -> None:
        """Signal the party's whole process group if it is still alive."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait_all(self, deadline: float) -> None:
        """Wait for the party and all processes that it started, until `deadline` on the monotonic clock; then kill."""
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
            while self._left():
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(self.process.args, STOP_SECONDS)
                time.sleep(0.05)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def _left(self) -> bool:
        """Whether a process of the party's group is there."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class PartyExit:
    """A party's process has ended."""

    def __init__(self, name: str, code: int) -> None:
        self.party = name
        self.code = code


class PartyGroup:
    """All processes of a run; leaving the `with` block ends every one of them, whatever happened."""

    def __init__(self) -> None:
        self.events: queue.Queue[AnyEvent | PartyExit] = queue.Queue()
        self._parties: dict[str, PartyProcess] = {}
        self._failures: dict[str, Failed] = {}

    def start(self, role: str, name: str, config: Path) -> None:
        """Start one party from its TOML file."""
        self._parties[name] = PartyProcess(role, name, config, self.events)

    def next_event(self, timeout: float) -> AnyEvent | None:
        """Return the next event, None after `timeout` seconds or for a party that ended well.

        Raises:
            SplitsecError: a party failed; its own error with its own words.
        """
        try:
            event = self.events.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, Failed):
            self._failures[event.party] = event
            return event
        if isinstance(event, PartyExit):
            if event.code != 0:
                raise self._error(event)
            return None
        return event

    def wait_listening(self, name: str, timeout: float) -> str:
        """Return the address on which a party listens; raises `PartyTimeoutError` if it does not say so in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            event = self.next_event(0.5)
            if isinstance(event, Listening) and event.party == name:
                return event.address
        raise PartyTimeoutError(f"{name} did not start within {timeout:g} s; its log is {self._parties[name].log}")

    def wait_finished(
        self, names: set[str], timeout: float, *, on_event: Callable[[AnyEvent], None] | None = None
    ) -> None:
        """Wait until all of `names` report `Finished`; `on_event` is called with every event."""
        deadline = time.monotonic() + timeout
        left = set(names)
        while left:
            event = self.next_event(0.2)
            if event is not None and on_event is not None:
                on_event(event)
            if isinstance(event, Finished):
                left.discard(event.party)
            if time.monotonic() > deadline:
                raise PartyTimeoutError(f"{', '.join(sorted(left))} did not finish within {timeout:g} s")

    @property
    def pids(self) -> dict[str, int]:
        """Return the process id of each party by name."""
        return {name: party.process.pid for name, party in self._parties.items()}

    def __enter__(self) -> PartyGroup:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave anyone behind.
        main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            for party in self._parties.values():
                party.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for party in self._parties.values():
                party.wait_all(deadline)
        finally:
            if main:
                signal.signal(signal.SIGINT, previous)

    def _error(self, exit_: PartyExit) -> SplitsecError:
        failed = self._failures.get(exit_.party)
        if failed is None:
            log = self._parties[exit_.party].log
            return SplitsecError(f"{exit_.party} ended with exit code {exit_.code}; {_last_line(log)}")
        kind = getattr(errors, failed.error, SplitsecError)
        return kind(f"{failed.party}: {failed.message}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"its log ends: {lines[-1][:300]}" if lines else f"its log {log} is empty"
