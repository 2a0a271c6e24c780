"""The dealer's half of aggregation: seeds of masks, and sums of masks that open for enough clients only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.prg import SEED_BYTES, Stream, fresh_seed
from splitsec.mpc.session.messages import Done
from splitsec.party_names import SERVER
from splitsec.privacy.dp_updates import NoiseShares, check_shares
from splitsec.training.messages import BeginRun, JoinRun, MaskSum, OpenMasks, RunSeed, Unseeded
from splitsec.transport import NO_TENSORS, Message, NamedTensors

MAX_LENGTH = 1 << 27
MAX_CLIENTS = 1 << 20
# Seeds of one client in one start of a run: it gets one each time that it comes back.
MAX_SEEDS = 1000


def check_sender(name: str, body: Message) -> None:
    """Check that a party may send the dealer this message about a run; raises `RandomnessError`."""
    if isinstance(body, JoinRun) and name == SERVER:
        raise RandomnessError("the server gets no mask seed: it could open uploads")
    if isinstance(body, BeginRun) and name != SERVER:
        raise RandomnessError(f"{name} may not begin a run; only the server may")
    if isinstance(body, OpenMasks) and name != SERVER:
        raise RandomnessError(f"{name} may not open masks; only the server may")


@dataclass
class MaskBook:
    """The dealer's side of one run: its clients' seeds, and which rounds have been opened to whom.

    A run that is killed may start again and repeat its last round, with new seeds. The repeated sum opens for the same
    clients only: two sums of the same values over different clients would give a single client's away.

    Args:
        minimum: no sum of fewer masks than this is ever opened; at least 2.
        opened: the clients of each round that was opened, in this start of the run or an earlier one.
        recorded: whether `opened` is all of it: kept since the run's beginning, by this dealer or one before it.
    """

    minimum: int = 2
    opened: dict[int, list[str]] = field(default_factory=dict)
    recorded: bool = False
    _starts: list[str] = field(default_factory=list)
    # Of each client the seeds and the round from which each counts: one that comes back gets a new one.
    _seeds: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict, repr=False)
    _pairing: bytes = field(default=b"", repr=False)
    # By client, what names its last request for a seed.
    _requests: dict[str, bytes] = field(default_factory=dict, repr=False)
    _noise: NoiseShares | None = None
    _next_round: int = 0
    # The last sum that was opened, for a server whose answer was lost on the way.
    _last_sum: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.minimum < 2:
            raise RandomnessError("a sum over fewer than 2 clients would open a single client's parameters")

    def answer(self, name: str, body: Message) -> tuple[Message, NamedTensors]:
        """Return the answer to a party's message about this run.

        Raises:
            RandomnessError: the party may not send it; or as `begin`, `pair_seeds`, `seeds_for` and `open_sum`.
        """
        check_sender(name, body)
        match body:
            case BeginRun(_, start, fresh, record):
                opened = None if record is None else {entry.round: entry.clients for entry in record}
                self.begin(start, fresh=fresh, opened=opened)
                return Done(), NO_TENSORS
            case JoinRun(_, start, first_round, noise, partners, once):
                pairs = self.pair_seeds(name, [partner for partner in partners if partner != SERVER])
                seed = self.seeds_for(name, start=start, first_round=first_round, noise=noise, once=once)
                return RunSeed(seed, pairs), NO_TENSORS
            case OpenMasks(_, start, round_number, participants, length):
                unseeded = self.unseeded(round_number, participants)
                if unseeded:
                    return Unseeded(round_number, tuple(unseeded)), NO_TENSORS
                total = self.open_sum(round_number, participants, length, start=start)
                return MaskSum(round_number), {"mask_sum": total}
            case other:
                raise RandomnessError(f"the dealer does not answer {type(other).__name__}")

    def begin(self, start: str = "", *, fresh: bool = True, opened: Mapping[int, Sequence[str]] | None = None) -> None:
        """Begin a start of the run, for the server: all seeds are made anew.

        Args:
            start: names it; the one that is running goes on.
            fresh: whether the run has no earlier rounds.
            opened: the server's own record of the rounds that were opened, if it is complete.

        Raises:
            RandomnessError: it goes on from rounds that nobody has a record of, the server's record differs from this
                one's, or the start is an old one.
        """
        if self._starts[-1:] == [start] and start:
            return
        for number, clients in (opened or {}).items():
            if sorted(self.opened.setdefault(number, sorted(clients))) != sorted(clients):
                raise RandomnessError(
                    f"the server's record of round {number} names other clients than this dealer's; begin a new run"
                )
        if not fresh and not self.recorded and opened is None:
            raise RandomnessError(
                "this dealer has no record of the run's earlier rounds, so it cannot tell whether a sum would repeat "
                "one over other clients: begin a new run, and give the dealer checkpoints too"
            )
        if start in self._starts:
            raise RandomnessError("the run has had this start")
        self.recorded = True
        self._starts.append(start)
        self._seeds, self._pairing, self._noise, self._next_round = {}, fresh_seed(), None, 0
        self._requests = {}
        self._last_sum = None

    def pair_seeds(self, client: str, partners: Sequence[str]) -> tuple[bytes, ...]:
        """Return the seeds that a client shares with each of `partners` and with nobody else.

        Raises:
            RandomnessError: the client is among them.
        """
        if client in partners:
            raise RandomnessError(f"{client} shares no seed with itself")
        pairs = (" ".join(sorted((client, partner))) for partner in partners)
        return tuple(hashlib.sha256(b"pair " + self._pairing + pair.encode()).digest()[:SEED_BYTES] for pair in pairs)

    def seeds_for(
        self,
        client: str,
        *,
        start: str = "",
        first_round: int = 0,
        noise: NoiseShares | None = None,
        once: bytes = b"",
    ) -> bytes:
        """Return a client's seed for the rounds from `first_round` on.

        Args:
            once: names the request; the last one of a client gets the same answer again, since that may have been lost
                on the way.
            noise: what the sum of all clients' uploads carries, the same at all of them. Shares of clients that are
                not there are added to the masks that `open_sum` gives.

        Raises:
            RandomnessError: the client has had a seed for that round, and a second would let two uploads share a mask;
                or the start is not the run's last one.
        """
        if start not in self._starts[-1:]:
            raise RandomnessError("the run has started again since, or has not begun; begin anew as well")
        if self._seeds and noise != self._noise:
            raise RandomnessError(f"{client} adds other noise than the clients before it; use the server's schedule")
        if noise is not None:
            check_shares(noise, MAX_CLIENTS)
        self._noise = noise
        seeds = self._seeds.setdefault(client, [])
        if seeds and once and self._requests.get(client) == once:
            return seeds[-1][1]
        if seeds and first_round == seeds[-1][0] and first_round > max(0, self._next_round - 1):
            # It was started twice before that round began: what its earlier life had counts no more.
            seeds.pop()
        if seeds and first_round <= seeds[-1][0]:
            raise RandomnessError(f"{client} has had its seed of this run; begin a new run")
        if len(seeds) >= MAX_SEEDS:
            raise RandomnessError(f"{client} has come back to this run {MAX_SEEDS} times; begin a new run")
        seeds.append((first_round, fresh_seed()))
        self._requests[client] = once
        return seeds[-1][1]

    def open_sum(self, round_number: int, participants: Sequence[str], length: int, *, start: str = "") -> torch.Tensor:
        """Return the sum of the participants' masks of one round, int64 of `length`.

        Each round once in a start, in order.

        Asked again for the last round and the same participants, it is the same sum.

        Raises:
            RandomnessError: too few participants, a stranger among them, or a round that was opened.
            MessageError: an impossible length.
        """
        names = set(participants)
        if len(names) != len(participants) or len(names) < self.minimum:
            raise RandomnessError(
                f"masks of {len(names)} clients are not opened; the sum needs at least {self.minimum} different ones"
            )
        if start not in self._starts[-1:]:
            raise RandomnessError("this is not the last start of the run")
        seeds = {name: self._seed_at(name, round_number) for name in participants}
        unknown = self.unseeded(round_number, participants)
        if unknown:
            raise RandomnessError(f"{', '.join(unknown)} takes no part in round {round_number} of this run")
        before = self.opened.get(round_number)
        again = round_number == self._next_round - 1 and before is not None and set(before) == names
        if again and self._last_sum is not None and len(self._last_sum) == length:
            return self._last_sum
        if round_number < self._next_round:
            raise RandomnessError(f"the masks of round {round_number} have been opened; each round opens once")
        if before is not None and set(before) != names:
            raise RandomnessError(
                f"before the run was started again round {round_number} was opened for {', '.join(before)}; another "
                "sum would give a single client's parameters away: start those clients too, or begin a new run"
            )
        if not 0 <= length <= MAX_LENGTH:
            raise MessageError(f"a front of {length} parameters is beyond {MAX_LENGTH}")
        self._next_round = round_number + 1
        self.opened[round_number] = sorted(names)
        total = torch.zeros(length, dtype=torch.int64)
        for seed in seeds.values():
            assert seed is not None
            total += Stream(seed, round_number).ring((length,))
        if self._noise is not None:
            total -= self._noise.missing(length, len(names))
        self._last_sum = total
        return total

    def unseeded(self, round_number: int, participants: Sequence[str]) -> list[str]:
        """Return which of these clients have no seed for the round: what they uploaded cannot be unmasked."""
        return sorted(name for name in participants if self._seed_at(name, round_number) is None)

    def _seed_at(self, client: str, round_number: int) -> bytes | None:
        return next((seed for first, seed in reversed(self._seeds.get(client, [])) if first <= round_number), None)
