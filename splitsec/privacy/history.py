"""What all runs over the same data have cost together, from the ledgers that a client keeps in one directory.

Whether two runs had data in common is found by keyed fingerprints of their records: BLAKE2b (RFC 7693, section 2.9)
under a salt that the directory keeps secret, so that neither a ledger nor a list of fingerprints lets anybody without
the salt test what the data is. A record that is in both counts for both: the costs of runs that share a record are
composed as those of one run with all their steps, which bounds what every record has spent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splitsec.errors import ConfigError
from splitsec.files import whole_file
from splitsec.mpc.prg import fresh_seed
from splitsec.privacy.accounting import epsilon_of
from splitsec.privacy.ledger import NOISY, Ledger, read_ledger
from splitsec.settings.privacy import Accountant

SALT = "ledger-salt"
# Two different records of a million look alike with a probability below 10^-7.
_BYTES = 8
_NAME_BYTES = 8


class RunHistory:
    """The runs whose ledgers are in one directory.

    Args:
        directory: of the ledgers; it is made where it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, records: Sequence[str] | torch.Tensor) -> str:
        """Keep the fingerprints of a run's records; returns the name under which they are kept, for its ledger.

        Args:
            records: ids, or a tensor (N, ...) with one record a row.
        """
        salt = self._salt()
        prints = np.unique(np.frombuffer(b"".join(_fingerprints(records, salt)), dtype="<u8"))
        name = f"{_digest(b'salt', salt)}-{_digest(prints.tobytes(), salt)}"
        path = self._path(name)
        if not path.exists():
            with whole_file(path) as partial:
                partial.write_bytes(prints.tobytes())
        return name

    def sharing(self, data: str, *, run: str) -> list[Ledger]:
        """Return ledgers of other runs that had a record in common with the data of this name.

        Those count as well whose fingerprints are gone, or were made with another salt: nothing can be told of them.

        Args:
            run: the run that is not counted.

        Raises:
            ConfigError: a ledger in the directory cannot be read.
        """
        own = self._records(data)
        others = (read_ledger(path) for path in sorted(self._directory.glob("ledger-*.json")))
        return [earlier for earlier in others if earlier.run != run and self._may_share(own, data, earlier.data)]

    def groups(self, ledgers: Iterable[Ledger]) -> list[list[Ledger]]:
        """Ledgers of the directory, grouped so that runs with a record in common are in one group."""
        groups: list[list[Ledger]] = []
        for ledger in ledgers:
            own = self._records(ledger.data)
            joined = [
                group for group in groups if any(self._may_share(own, ledger.data, other.data) for other in group)
            ]
            groups = [group for group in groups if group not in joined] + [
                [*(each for group in joined for each in group), ledger]
            ]
        return groups

    def _may_share(self, own: NDArray[np.uint64] | None, data: str, other: str) -> bool:
        if data == other or own is None or data.split("-")[0] != other.split("-")[0]:
            return True
        other_records = self._records(other)
        return other_records is None or bool(np.intersect1d(own, other_records, assume_unique=True).size)

    def _records(self, data: str) -> NDArray[np.uint64] | None:
        path = self._path(data)
        if not data or not path.is_file():
            return None
        return np.frombuffer(path.read_bytes(), dtype="<u8")

    def _path(self, data: str) -> Path:
        return self._directory / f"{data}.records"

    def _salt(self) -> bytes:
        path = self._directory / SALT
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with whole_file(path) as partial:
                    partial.touch(mode=0o600)
                    partial.write_text(fresh_seed().hex() + "\n")
            return bytes.fromhex(path.read_text())
        except ValueError:
            raise ConfigError(
                f"{path} holds no salt; remove it: all earlier runs then count as runs over the same data"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot keep a ledger in {self._directory}: {error.strerror}") from None


def shared_runs(place: Path) -> list[list[Ledger]]:
    """Return groups of two and more runs below a directory that had a record in common."""
    directories = sorted({path.parent for path in place.rglob("ledger-*.json")})
    groups = [
        group
        for directory in directories
        for group in RunHistory(directory).groups(read_ledger(path) for path in sorted(directory.glob("ledger-*.json")))
    ]
    return [group for group in groups if len(group) > 1]


def epsilon_together(ledgers: Iterable[Ledger], *, delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of all trained mechanisms of these runs together, for one record that was in all of them.

    What protects a client with all its data protects a record of it as much. Noise on activations is left out: it is
    against the server, which a budget is not.
    """
    return epsilon_of(steps_of(ledgers), delta=delta, accountant=accountant)


def epsilon_of_noisy_activations(ledgers: Iterable[Ledger], *, delta: float) -> float:
    """Epsilon at `delta`, against the server, of the noisy activations of a row that was sent in all of these runs."""
    return epsilon_of(_steps(ledgers, noisy=True), delta=delta, accountant="rdp")


def steps_of(ledgers: Iterable[Ledger]) -> list[tuple[float, float, int]]:
    """Noise multiplier, sampling rate and steps of every mechanism that a budget is for."""
    return _steps(ledgers, noisy=False)


def _steps(ledgers: Iterable[Ledger], *, noisy: bool) -> list[tuple[float, float, int]]:
    return [
        (entry.noise, entry.rate, entry.steps)
        for ledger in ledgers
        for entry in ledger.entries
        if entry.epsilon is not None and (entry.mechanism == NOISY) == noisy
    ]


def _fingerprints(records: Sequence[str] | torch.Tensor, salt: bytes) -> Iterable[bytes]:
    if isinstance(records, torch.Tensor):
        flat = records.detach().contiguous().reshape(len(records), -1)
        # Sizes come first, so that rows of different kinds do not look alike.
        kind = f"{flat.dtype}{tuple(records.shape[1:])}".encode()
        rows = flat.view(torch.uint8).numpy() if flat.numel() else ()
        return (hashlib.blake2b(kind + row.tobytes(), key=salt, digest_size=_BYTES).digest() for row in rows)
    return (hashlib.blake2b(record.encode(), key=salt, digest_size=_BYTES).digest() for record in records)


def _digest(content: bytes, salt: bytes) -> str:
    return hashlib.blake2b(content, key=salt, digest_size=_NAME_BYTES, person=b"data").hexdigest()
