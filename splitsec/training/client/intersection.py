"""Private set intersection: clients find the rows that they all have, and nobody sees another's ids.

Each client hashes its ids to points of P-256 and multiplies them by a secret scalar; every other client multiplies by
its own. What has been multiplied by all is equal for equal ids and says nothing else. Diffie-Hellman private set
intersection: C. Meadows, IEEE S&P 1986; for semi-honest parties R. Agrawal et al., "Information sharing across private
databases", SIGMOD 2003, section 3.3. Points are x coordinates alone: the curve has prime order, and multiplying P or -P
gives the same one.

The server compares what has been multiplied by all, which it cannot connect with any id, and tells each client which
of its own are common to all. So clients learn how many ids each other has and which of their own all have; the server
learns how many ids each client has and how many any of them have in common.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence

import torch
from cryptography.hazmat.primitives.asymmetric import ec

from splitsec.data.tables import plain_id
from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.training.intersection import packed, unpacked

log = logging.getLogger(__name__)
_CURVE = ec.SECP256R1()
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_DOMAIN = b"splitsec alignment "


class Alignment:
    """One client's part: `mine` goes round the others, `pass_on` multiplies what is theirs, `common` finds the rows.

    Args:
        ids: of this client's rows, each once; blanks around them, and how accents are written, do not count.

    Raises:
        ConfigError: an id that comes twice, or no ids.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        if not ids:
            raise ConfigError("there are no ids to align the rows by")
        ids = [plain_id(text) for text in ids]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ConfigError(f"the id of row {ids.index(twice)} comes twice; every row needs an id of its own")
        self._ids = ids
        # How many ids each other client has.
        self._others: dict[str, int] = {}
        stream = Stream(fresh_seed())
        scalar = int.from_bytes(stream.bytes(48).tobytes(), "big") % (_ORDER - 1) + 1
        self._key = ec.derive_private_key(scalar, _CURVE)
        # A random order, so that a point's place says nothing about the id.
        self._order = torch.argsort(stream.ring((len(ids),))).tolist()

    def mine(self) -> torch.Tensor:
        """Return this client's points in a random order, uint8 (N, 32)."""
        return packed([self._multiplied(_hashed(self._ids[row])) for row in self._order])

    def pass_on(self, points: torch.Tensor, owner: str = "the other") -> torch.Tensor:
        """Another client's points, multiplied, in the same order; raises `MessageError` for what are no points."""
        multiplied = packed([self._multiplied(_point(coordinates)) for coordinates in unpacked(points)])
        self._others[owner] = len(multiplied)
        return multiplied

    def common(self, places: torch.Tensor) -> list[int]:
        """Return this client's rows that all others have too, in the order of their ids, which is everybody's.

        Args:
            places: which of the points of `mine` are common to all, int64.

        Where less than half of the ids are common, a warning says so.

        Raises:
            ConfigError: there are none.
            MessageError: places that are not there.
        """
        numbers = places.tolist()
        if len(set(numbers)) != len(numbers) or any(not 0 <= place < len(self._order) for place in numbers):
            raise MessageError("places of common rows that are not there")
        if not numbers:
            raise ConfigError(
                f"no id of this client's {len(self._ids)} rows is known to all other clients ({self._counts}): check "
                f"that the ids are written alike everywhere; {self._look}"
            )
        if 2 * len(numbers) < min(len(self._ids), *self._others.values()):
            log.warning(
                "only %d of this client's %d ids are known to all other clients (%s): if there should be more, check "
                "that the ids are written alike everywhere; %s",
                len(numbers),
                len(self._ids),
                self._counts,
                self._look,
            )
        return sorted((self._order[place] for place in numbers), key=lambda row: self._ids[row])

    @property
    def _counts(self) -> str:
        return ", ".join(f"{name} has {count} ids" for name, count in self._others.items())

    @property
    def _look(self) -> str:
        shape = Counter(shape_of(text) for text in self._ids).most_common(1)[0][0]
        return f"here they look like {shape!r} (a for a letter, 9 for a digit, 0 for a zero in front)"

    def _multiplied(self, point: ec.EllipticCurvePublicKey) -> bytes:
        return self._key.exchange(ec.ECDH(), point)


def shape_of(text: str) -> str:
    """How an id is written, without the id: letters become a or A, digits 9, zeros in front stay.

    Example:
        >>> shape_of("Ward-0042"), shape_of(" 42")
        ('Aaaa-0099', ' 99')
    """
    zeros = re.compile(r"0*(?=\d)")

    def digits(match: re.Match[str]) -> str:
        front = zeros.match(match[0])
        count = len(front[0]) if front else 0
        return "0" * count + "9" * (len(match[0]) - count)

    kept = re.sub(r"\d+", digits, text)
    return "".join(("A" if sign.isupper() else "a") if sign.isalpha() else sign for sign in kept)


def _hashed(text: str) -> ec.EllipticCurvePublicKey:
    """Return a point whose logarithm nobody knows; half of all numbers are x coordinates, so the first that is one."""
    for counter in range(256):
        digest = hashlib.sha256(_DOMAIN + bytes([counter]) + text.encode()).digest()
        try:
            return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x02" + digest)
        except ValueError:
            continue
    raise AssertionError("no point in 256 tries")


def _point(coordinate: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x02" + coordinate)
    except ValueError:
        raise MessageError("bytes that are no point of the curve") from None
