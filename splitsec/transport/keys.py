"""CURVE key pairs of the parties, in pyzmq's certificate files.

A key directory holds `NAME.key` (public, may be copied anywhere) for every party and `NAME.key_secret` (mode 0600,
stays with its owner) for the parties that run on this machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from splitsec.errors import AuthenticationError, ConfigError

PARTY_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}\Z")


@dataclass(frozen=True)
class KeyPair:
    """A party's CURVE key pair; both keys are Z85 text of 40 bytes."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)


def fingerprint(public: bytes) -> str:
    """Return sixteen hexadecimal digits that people can compare in the place of a public key."""
    return hashlib.sha256(public).hexdigest()[:16]


def check_party_name(name: str) -> str:
    """Return `name` if it can name a party, else raise `ConfigError`."""
    if not PARTY_NAME.match(name):
        raise ConfigError(
            f"'{name}' cannot name a party: use lower-case letters, digits and '-', beginning with a letter"
        )
    return name


def make_keys(directory: Path, names: Iterable[str]) -> list[Path]:
    """Write a fresh key pair for each name.

    Returns:
        The paths of the public keys.

    Raises:
        ConfigError: a key of one of these names exists already, which is not replaced; or the directory cannot be made.
    """
    names = [check_party_name(name) for name in names]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"cannot write keys to {directory}: {reason}; choose another directory") from None
    for name in names:
        for suffix in (".key", ".key_secret"):
            if (directory / (name + suffix)).exists():
                raise ConfigError(f"{directory / (name + suffix)} exists; remove it or choose another directory")
    written = []
    previous_umask = os.umask(0o077)
    try:
        for name in names:
            public, secret = zmq.auth.create_certificates(str(directory), name)
            Path(secret).chmod(0o600)
            Path(public).chmod(0o644)
            written.append(Path(public))
    finally:
        os.umask(previous_umask)
    return written


def load_key_pair(directory: Path, name: str) -> KeyPair:
    """Read the secret key of party `name`; raises `AuthenticationError` where it is missing or unreadable."""
    path = directory / f"{name}.key_secret"
    _check_secrecy(path)
    try:
        public, secret = zmq.auth.load_certificate(path)
        _check_keys(public, *([] if secret is None else [secret]))
    except Exception as error:
        raise AuthenticationError(
            f"no usable secret key for '{name}' at {path}; make one with: splitsec keys --out "
            f"{shlex.quote(str(directory))} {name}"
        ) from error
    if secret is None:
        raise AuthenticationError(f"{path} holds no secret key; it looks like a public one")
    return KeyPair(name=name, public=public, secret=secret)


def _check_keys(*keys: bytes) -> None:
    """Raise `ValueError` for bytes that are no key: ZeroMQ says so only when a socket is made."""
    for key in keys:
        if len(key) != 40 or len(z85.decode(key)) != 32:
            raise ValueError("a key has 40 characters of Z85")


def _check_secrecy(path: Path) -> None:
    """Raise `AuthenticationError` for a key file that others than its owner can open, as ssh does."""
    try:
        mode = path.stat().st_mode
    except OSError:
        # Whoever reads it says what is wrong.
        return
    others = stat.S_IMODE(mode) & 0o066
    if others:
        who = "all users" if others & 0o007 else "its group"
        what = "read" if others & 0o044 else "write to"
        raise AuthenticationError(
            f"the secret key {path} is not secret: {who} of this machine can {what} it (mode "
            f"{stat.S_IMODE(mode):04o}); close it with: chmod 600 {path} - and make a new pair if others may have it"
        )


def load_public_key(directory: Path, name: str) -> bytes:
    """Read the public key of party `name`; raises `AuthenticationError` where it is missing."""
    path = directory / f"{name}.key"
    try:
        public, _ = zmq.auth.load_certificate(path)
        _check_keys(public)
    except Exception as error:
        raise AuthenticationError(f"no usable public key for '{name}' at {path}; copy it from its owner") from error
    return public


def load_public_keys(directory: Path) -> dict[str, bytes]:
    """Read every public key in `directory`: party name to Z85 key."""
    return {path.stem: load_public_key(directory, path.stem) for path in sorted(directory.glob("*.key"))}
