"""A run's training at the server, without sockets: who is there, round after round, and how a round ends.

A client that sends nothing for too long is dropped from its round; the others go on without it and the average is over
those whose uploads arrived. It may come back at any time and takes part again from the next round on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from splitsec import __version__
from splitsec.cut import is_u
from splitsec.cut.origin import Origin, origin_of, set_origin
from splitsec.errors import (
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RandomnessError,
    RefusedError,
    RestartedError,
    SplitsecError,
)
from splitsec.mpc.ring import check_range
from splitsec.parties.aligning import Aligner
from splitsec.parties.budgeting import Budgeting
from splitsec.parties.combining import AskDealer, ClientsUnseeded, Combiner, upload_shape
from splitsec.parties.door import check_architecture, check_belongs, check_columns_complete, check_hello
from splitsec.parties.events import Dropped, Joined, Report, RoundDone
from splitsec.parties.keeping import check_same_run, identity_of, mark_of, restore, state_of
from splitsec.parties.learning import MEANS
from splitsec.parties.names import SERVER
from splitsec.parties.relay import RelayBook, turn_of
from splitsec.parties.steps import JoinedSteps, Send, Steps, USteps
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.clienttails import ClientTails
from splitsec.training.loop import set_rate
from splitsec.training.messages import (
    Aligned,
    Batch,
    BeginRun,
    Combined,
    GaveUp,
    GreetAgain,
    Handed,
    HeadGradient,
    Hello,
    Missed,
    NewSeeds,
    Opened,
    OpenMasks,
    Points,
    Return,
    SeedsLost,
    ServerBody,
    Upload,
    Welcome,
)
from splitsec.training.randomness import OwnRandomness
from splitsec.training.schedule import Schedule
from splitsec.training.tail import TailTrainer
from splitsec.transport import Refused, expect_tensor

log = logging.getLogger(__name__)


class RunFailed(Exception):
    """The run cannot go on, for anybody."""

    def __init__(self, reason: SplitsecError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Run:
    """The training of one run; `take` for each message, `tick` now and then.

    Args:
        send: sends a message to a client by name.
        ask_dealer: asks the dealer and returns its answer.
        traffic: bytes sent and received on all clients' links so far.
        timeout: seconds that the others wait for a client before it is dropped from the round.
        round_timeout: seconds after which a round goes on without those for whom others wait; the others have as long
            again. None for no limit.
        join_timeout: seconds to wait for all clients at the beginning; then the run goes on with those who came, if
            they are enough.
        checkpoints: where to keep and find them; None keeps none.
        seed: of dropout and the like in the tail; None for a random one.
    """

    def __init__(
        self,
        tail: nn.Module,
        *,
        cut: str,
        schedule: Schedule,
        send: Send,
        ask_dealer: AskDealer,
        report: Report,
        traffic: Callable[[], tuple[int, int]],
        timeout: float,
        round_timeout: float | None = None,
        join_timeout: float,
        checkpoints: Checkpoints | None = None,
        seed: int | None = None,
    ) -> None:
        self._tail = tail
        self._cut = cut
        self.schedule = schedule
        self._send = send
        self._report = report
        self._traffic = traffic
        self._ask_dealer = ask_dealer
        self._timeout = timeout
        self._round_timeout = round_timeout
        self._join_timeout = join_timeout
        self._checkpoints = checkpoints
        learns = ClientTails if schedule.privacy.by_client else TailTrainer
        # Dropout from a seed that others know would tell them how many rows are in a step.
        own = OwnRandomness(None if schedule.privacy.epsilon else seed)
        self._trainer = learns(tail, learning_rate=schedule.learning_rate, randomness=own)
        if schedule.privacy.epsilon:
            from splitsec.privacy.record import check_private

            check_private(tail)
        kind = JoinedSteps if schedule.join else USteps if is_u(cut) else Steps
        self._steps = kind(self._trainer, cut=cut, schedule=schedule, send=send)
        self._aligner = Aligner(schedule.clients, send) if schedule.join else None
        self._combiner = Combiner(schedule, ask_dealer)
        # Whose sums were opened in the last rounds, and the round of which this start was the first to know.
        self._opened: dict[int, tuple[str, ...]] = {}
        self._first_round = 0
        self._start = secrets.token_hex(16)
        self._saved = () if checkpoints is None else checkpoints.rounds()
        kept: dict[str, Any] = {}
        if checkpoints is not None and self._saved:
            kept = check_same_run(checkpoints, self._saved[-1], cut, schedule)
        self._id = kept.get("run") or secrets.token_hex(16)
        self.members: dict[str, Hello] = {}
        # None before the first round.
        self.round: int | None = None
        # How many samples there were at the beginning, from which the number of rounds follows.
        self._samples = int(kept.get("samples", 0))
        # After how many the budget of privacy ends the run is known where there is a checkpoint.
        self.rounds = int(kept.get("rounds", 0)) if kept.get("epochs") == schedule.epochs else 0
        self._architecture = origin_of(tail).architecture
        self._mark = ""
        self._budget = Budgeting(schedule, kept)
        self._active: list[str] = []
        # In a relay, those whose turn it is not.
        self._idle: list[str] = []
        self._returning: set[str] = set()
        self._uploads: dict[str, torch.Tensor] = {}
        self._norms: dict[str, torch.Tensor] = {}
        self._uploaded: set[str] = set()
        self._dropped: list[str] = []
        self._progress: float | None = None
        self._round_began = 0.0
        # Rows of columns are aligned for predictions alone too.
        self.finished = schedule.epochs == 0 and schedule.join is None
        # The end of the last round, for who comes back after it.
        self._last_sent: Combined | None = None
        self._relay = RelayBook(schedule.clients) if schedule.combine == "relay" else None
        # In a relay, those who wait for segments that their holder was asked for.
        self._owed: tuple[str, ...] = ()

    def take(self, name: str, body: ServerBody, tensors: Sequence[torch.Tensor], *, now: float) -> None:
        """Handle a client's message.

        Raises:
            SplitsecError: it is refused; nothing has changed.
            RunFailed: the run is over for all.
        """
        match body:
            case Hello():
                self._welcome(name, body, now)
            case Batch(number) | HeadGradient(number):
                if self._in_round(name, number):
                    if name in self._uploaded:
                        raise MessageError(f"{name} has sent its part and must wait for the others")
                    self._steps.take(name, body, tensors)
                    self._progress = now
                    self._step()
            case Upload(number):
                if self._in_round(name, number):
                    self._take_upload(name, tensors, now)
            case GaveUp(reason):
                self._gave_up(name, reason, now)
            case SeedsLost(start):
                if start == self._start and not self.finished:
                    self._check_seeds_lost(name)
                    self._renew_seeds(now)
            case Handed():
                self._hand_on(name, body, tensors, now)
            case Points() | Aligned():
                self._align(name, body, tensors, now)
            case Return() if self.finished and self._last_sent is not None:
                self._send_end(name)
            case Return():
                if name in self.members and name not in self._active and name not in self._idle:
                    self._returning.add(name)
            case other:
                raise MessageError(f"the server does not answer {type(other).__name__}")

    def tick(self, now: float) -> None:
        """See to the time limits; raises `RunFailed` if too few clients are left."""
        if self.finished:
            return
        if self._progress is None:
            self._progress = now
        silent = now - self._progress
        if self.round is None:
            if silent > self._join_timeout:
                missing = [name for name in self.schedule.clients if name not in self.members]
                if len(self.members) < self._fewest:
                    raise RunFailed(
                        PartyTimeoutError(f"{', '.join(missing)} did not come within {self._join_timeout:g} s")
                    )
                self._begin(now)
            return
        if self._aligning:
            if silent > self._timeout:
                assert self._aligner is not None
                who = ", ".join(self._aligner.missing)
                raise RunFailed(PartyTimeoutError(f"{who} sent nothing for {self._timeout:g} s while rows align"))
            return
        if self._owed and self._relay is not None and silent > self._timeout:
            # Not the fault of those who wait for it.
            log.warning("%s was to hand its segments on and sent nothing for %g s", self._relay.holder, self._timeout)
        late = [name for name in self._active if name not in self._uploaded]
        missing = [name for name in late if not self._steps.has(name)]
        over = self._round_timeout is not None and now - self._round_began > self._round_timeout
        if over and len(missing) < len(self._active):
            # Those who wait have done their part so far, and have as long again for the rest.
            self._round_began = now
            self._drop(missing, f"kept the others waiting in round {self.round + 1} beyond its time limit", now)
        elif silent > self._timeout:
            self._drop(missing, f"sent nothing for {self._timeout:g} s in round {self.round + 1}", now)

    def refresh(self, before: float, now: float) -> None:
        """The time that handling a message took is nobody's silence: `before` is when it was begun."""
        if self._progress == before:
            self._progress = now
        if self._round_began == before:
            self._round_began = now

    def gone(self, name: str, *, now: float) -> None:
        """Go on at once without a client that is known to be gone."""
        if self.round is not None and name in self._active and name not in self._uploaded:
            self._drop([name], f"is gone in round {self.round + 1}", now)

    def _gave_up(self, name: str, reason: str, now: float) -> None:
        """Go on without a client that has said that it ends."""
        if self.round is None:
            # It may come back until all are there.
            if self.members.pop(name, None) is not None:
                self._report(Dropped(SERVER, name=name, round=1, reason=reason))
            return
        self._returning.discard(name)
        self._idle = [other for other in self._idle if other != name]
        if self.finished or name not in self._active or name in self._uploaded:
            return
        if self._aligning:
            raise RunFailed(RefusedError(f"{name} {reason}, and without its columns nobody can train"))
        self._drop([name], reason, now)

    def _check_seeds_lost(self, name: str) -> None:
        """Raise `MessageError` where the dealer still knows this start of the run, whatever a client says."""
        if self.round is None or name not in self.members:
            raise MessageError("SeedsLost was not due")
        try:
            # It opens nothing, since no sum is over no client.
            self._ask_dealer(OpenMasks(self._id, self._start, self.round, (), 0))
        except RestartedError:
            return
        except RandomnessError:
            raise MessageError(f"{name} says that the dealer has lost the run's seeds, and it has not") from None
        except SplitsecError as error:
            raise RunFailed(error) from error

    def _renew_seeds(self, now: float) -> None:
        """Begin the run anew at a dealer that was started again, in the round that is running.

        What has been uploaded is uploaded once more under masks that the dealer knows. It opens a round for the same
        clients only, by the server's record, so that nobody's part can be told from two sums.
        """
        assert self.round is not None
        self._start = secrets.token_hex(16)
        log.warning("the dealer was started again; the run goes on in round %d with new seeds", self.round + 1)
        # Whether the round from which a run goes on had been opened before, its earlier start alone knew.
        complete = not self._saved or self.round > self._first_round
        opened = tuple(Opened(number, clients) for number, clients in sorted(self._opened.items()))
        try:
            self._ask_dealer(BeginRun(self._id, self._start, fresh=False, opened=opened if complete else None))
        except SplitsecError as error:
            raise RunFailed(error) from error
        if self._relay is not None:
            self._relay.renew()
        self._uploads, self._norms = {}, {}
        self._uploaded = set()
        for name in dict.fromkeys([*self._active, *self._idle, *sorted(self._returning)]):
            self._send(name, NewSeeds(self._start, self.round if name in self._active else self.round + 1), [])
        self._progress = now

    @property
    def waiting(self) -> list[str]:
        """Who has sent its part and waits for others."""
        if self.round is None or self._aligning:
            return list(self.members)
        mine = [name for name in self._active if name in self._uploaded or self._steps.has(name)]
        return mine + self._idle + sorted(self._returning)

    @property
    def _fewest(self) -> int:
        if self.schedule.join:
            return len(self.schedule.clients)
        return self.schedule.minimum if self.schedule.combine == "average" else 1

    @property
    def _aligning(self) -> bool:
        return self._aligner is not None and self._aligner.rows is None

    def _welcome(self, name: str, hello: Hello, now: float) -> None:
        check_hello(name, hello, cut=self._cut, schedule=self.schedule, members=self.members)
        check_architecture(name, hello, self._architecture)
        if hello.columns is not None and not self.schedule.epochs:
            check_belongs(name, hello.columns, origin_of(self._tail))
        if self.finished and self.round is None:
            raise RefusedError(
                "the server's run has no training (epochs = 0): clients of predictions alone have train = false, and "
                "as weights the front that belongs to the server's tail"
            )
        if hello.shape and not self.schedule.join:
            self._trainer.check_activation(torch.zeros(1, *hello.shape))
        if self.round is None:
            self._progress = now
        else:
            self._check_return(name, hello)
        self.members[name] = hello
        self._report(Joined(SERVER, name))
        if self.round is None:
            if len(self.members) == len(self.schedule.clients):
                self._begin(now)
            return
        if self._relay is not None:
            known = hello.run == self._id and self.round in hello.rounds
            self._relay.started_again(name, has_segments=known)
            if self.finished:
                self._tell_unserved()
        if self._would_be_too_few(name) and self._checkpoints is not None:
            self._begin_again(name, now)
            return
        # It was started again, whatever is left of its earlier life.
        if not self.finished and name in self._active and name not in self._uploaded:
            self._drop([name], "was started again", now)
        self._steps.drop(name)
        if self.finished:
            self._welcome_at_the_end(name)
            return
        self._returning.add(name)
        self._send(name, self._welcome_to(self.round + 1, wait=True), [])

    def _would_be_too_few(self, name: str) -> bool:
        """Whether the round could not go on without a client that has been started again."""
        running = not self.finished and name in self._active and name not in self._uploaded
        # Steps that a budget has counted are not taken again.
        budget = self._budget.plan is not None
        return running and not budget and len(self._active) - 1 < self._fewest and self._relay is None

    def _begin_again(self, name: str, now: float) -> None:
        """Begin the round anew for all, from the checkpoint of its beginning, with a client that was started again."""
        assert self._checkpoints is not None
        assert self.round is not None
        log.warning("%s was started again, and round %d begins anew for all", name, self.round + 1)
        others = [other for other in self.members if other != name]
        self._start = secrets.token_hex(16)
        self._saved = self._checkpoints.rounds()
        self.members = {name: self.members[name]}
        self.round = None
        self._active, self._idle, self._returning = [], [], set()
        self._progress = now
        for other in others:
            self._send(other, GreetAgain(), [])

    def _check_return(self, name: str, hello: Hello) -> None:
        """Raise `RefusedError` for a client that cannot come (back) into the run now."""
        known = self.members.get(name)
        if known is not None and known.samples != hello.samples:
            raise RefusedError(f"{name} has {hello.samples} samples now and began with {known.samples}")
        if self.schedule.join:
            raise RefusedError(
                "columns are joined of all clients from the beginning: start all parties again, with checkpoints to go "
                "on from the last round"
                if not self.finished
                else "the rows of all clients were aligned before: for other rows start all parties again, the server "
                "with epochs = 0, all with the trained weights"
            )

    def _welcome_at_the_end(self, name: str) -> None:
        if self._last_sent is None:
            self._send(name, self._welcome_to(self.rounds), self._last())
        else:
            self._send(name, self._welcome_to(self.rounds, wait=True), [])
            self._send_end(name)

    def _welcome_to(self, number: int, *, wait: bool = False) -> Welcome:
        mark = self._mark if number >= self.rounds else ""
        return Welcome(self._id, self._start, self.schedule, number, self.rounds, wait, self._budget.plan, mark)

    def _begin(self, now: float) -> None:
        """The first round of this start: the newest that everybody can go on from."""
        # On from checkpoints there are as many rounds as at the beginning, whoever has come this time.
        self._samples = self._samples or sum(hello.samples for hello in self.members.values())
        self.rounds = self.rounds or self.schedule.rounds(self._samples)
        if self.schedule.epochs:
            set_origin(self._tail, Origin(architecture=self._architecture))
        rounds = {name: hello.rounds if hello.run == self._id else (0,) for name, hello in self.members.items()}
        own = self._saved or (0,)
        common = [one for one in own if all(one in mine for mine in rounds.values())]
        self.round = self._first_round = common[-1] if common else own[-1]
        if self._checkpoints is not None and self._saved:
            tensors, facts = self._checkpoints.load(self.round)
            restore(self._tail, self._trainer, self._combiner, tensors)
            self._mark = facts.get("mark", "")
            self._check_marks()
        try:
            if self.schedule.join:
                self._check_joined()
            samples = sum(hello.samples for hello in self.members.values())
            self.rounds = self._budget.begin(samples=samples, number=self.round, rounds=self.rounds)
            if self._budget.tail is not None:
                self._trainer.protect(self._budget.tail, jointly=self.schedule.privacy.sums_steps)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if self._checkpoints is None or not self._saved or self._budget.plan is not None:
            self._save()
        if self.schedule.combine != "none" or self.schedule.join:
            try:
                self._ask_dealer(BeginRun(self._id, self._start, fresh=not self._saved))
            except SplitsecError as error:
                raise RunFailed(error) from error
        for name, mine in rounds.items():
            # Who has no checkpoint of this round begins it with the last average.
            given = [] if self.round in mine else self._last()
            if self.round not in mine and not given:
                raise RunFailed(
                    ConfigError(
                        f"{name} can go on from round {mine[-1]} and the server from round {self.round}: their "
                        "checkpoints are not of one run; remove those of all parties to begin anew"
                    )
                )
            self._send(name, self._welcome_to(self.round), given)
        self._active = list(self.members)
        self._progress = now
        if not self._aligning:
            self._next_round(now)

    def _check_joined(self) -> None:
        """Raise `SplitsecError` where the clients' columns cannot be joined, or the tail cannot take what they make."""
        check_columns_complete(self.schedule, self.members)
        widths = [hello.shape[0] for hello in self.members.values() if hello.shape]
        if len(widths) == len(self.schedule.clients):
            total = sum(widths) if self.schedule.join == "concat" else widths[0]
            self._trainer.check_activation(torch.zeros(1, total))

    def _check_marks(self) -> None:
        """Raise `RunFailed` where a client's checkpoint of this round is not the partner of the server's."""
        for name, hello in self.members.items():
            marks = dict(zip(hello.rounds, hello.marks, strict=False)) if hello.run == self._id else {}
            mark = marks.get(self.round or 0, "")
            if mark and self._mark and mark != self._mark:
                raise RunFailed(
                    ConfigError(
                        f"the checkpoint of round {self.round} at {name} does not belong to the server's: one of them "
                        "was copied from another directory; remove those of all parties to begin anew"
                    )
                )

    def _align(self, name: str, body: Points | Aligned, tensors: Sequence[torch.Tensor], now: float) -> None:
        if self._aligner is None or self.round is None or not self._aligning:
            raise MessageError(f"{type(body).__name__} was not due")
        self._progress = now
        if isinstance(body, Points):
            self._aligner.points(name, body, tensors)
            return
        try:
            self._aligner.aligned(name, body)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if not self._aligning:
            self._next_round(now)
            for client in self.schedule.clients:
                self._send(client, body, [])

    def _next_round(self, now: float) -> None:
        assert self.round is not None
        if self.round >= self.rounds:
            self.finished = True
            self._trainer.close()
            if self.schedule.epochs:
                origin = Origin(self._mark, self._architecture, self._id, self.rounds)
                set_origin(self._tail, origin)
            self._tell_unserved()
            return
        there = [name for name in self.schedule.clients if name in self._active or name in self._returning]
        self._returning, self._uploads, self._uploaded, self._dropped = set(), {}, set(), []
        self._norms = {}
        if self.schedule.combine == "relay":
            assert self._relay is not None
            name = turn_of(self.schedule.clients, self.round)
            self._active = [name] if name in there and self._relay.can_train(name, there) else []
            self._idle = [name for name in there if name not in self._active]
            try:
                if there:
                    self._relay.check_kept(there)
            except SplitsecError as error:
                raise RunFailed(error) from error
        else:
            self._active, self._idle = there, []
        set_rate(self._trainer.optimizer, self.schedule.rate(self.round, self.rounds))
        samples = {name: self.members[name].samples for name in self._active}
        self._steps.begin(samples)
        self._trainer.begin_round(samples)
        self._trainer.expected = self._budget.expected(samples)
        self._progress = self._round_began = now
        if len(self._active) < self._fewest and self.schedule.combine != "relay":
            raise RunFailed(PartyTimeoutError(self._too_few(self._active)))
        if not there:
            raise RunFailed(PartyTimeoutError("no client is left"))
        if not self._active:
            self._end_round(now)

    def _in_round(self, name: str, number: int) -> bool:
        """Whether a message is for the round that is running; one that is late is told so, and not an error."""
        if self.round is None or (self.finished and self._last_sent is None):
            raise RefusedError("no training is running")
        if number > self.round or (self.finished and number == self.round):
            raise MessageError(f"round {number} is not running; the run is in round {self.round}")
        if name in self._active and number == self.round and not self.finished:
            return True
        if name not in self.members:
            raise RefusedError(f"{name} has not joined the run")
        if self.finished or (name not in self._active and name not in self._idle):
            log.info("%s is late for round %d", name, number + 1)
            self._send(name, Missed(number), [])
        return False

    def _take_upload(self, name: str, tensors: Sequence[torch.Tensor], now: float) -> None:
        if name in self._uploaded:
            raise MessageError(f"{name} has sent its part and must wait for the others")
        if self._steps.owes(name):
            raise MessageError(f"{name} has a step that is not finished")
        values = self.members[name].values
        if self.schedule.privacy.sums_steps and tensors:
            *tensors, norms = tensors
            rows = len(self._trainer.norms.get(name, ()))
            expect_tensor(norms, what="norms", dtype=torch.float32, shape=(rows,))
            check_range(norms, limit=float("inf"), what=f"a norm of {name}")
            self._norms[name] = norms
        if self._relay is not None:
            assert self.round is not None
            self._relay.upload(name, self.round, self.rounds, tensors, values)
            tensors = []
        vector = upload_shape(tensors, values=values, expected=self._combiner.uploads_values)
        self._progress = now
        self._uploaded.add(name)
        if vector is not None:
            self._uploads[name] = vector
        self._go_on(now)

    def _step(self) -> None:
        try:
            self._steps.step_when_complete([name for name in self._active if name not in self._uploaded])
        except SplitsecError as error:
            raise RunFailed(error) from error

    def _go_on(self, now: float) -> None:
        if len(self._uploaded) == len(self._active):
            self._end_round(now)
        else:
            self._step()

    def _drop(self, names: Sequence[str], why: str, now: float) -> None:
        if not names:
            return
        assert self.round is not None
        reason = f"{', '.join(names)} {why}"
        for name in names:
            self._active.remove(name)
            self._steps.drop(name)
            self._dropped.append(name)
            self._report(Dropped(SERVER, name=name, round=self.round + 1, reason=why))
            # If it is still there, it says so.
            self._send(name, Missed(self.round), [])
        self._progress = now
        if len(self._active) < self._fewest and self.schedule.combine != "relay":
            raise RunFailed(PartyTimeoutError(f"{reason}; {self._too_few(self._active)}"))
        self._go_on(now)

    def _leave_out(self, names: Sequence[str], now: float) -> None:
        """End the round without the uploads of clients that have no seed of it at the dealer, and tell them why."""
        assert self.round is not None
        why = f"uploaded without a seed from the dealer for round {self.round + 1}"
        error = RandomnessError(f"{', '.join(names)} {why}; join the run at the dealer first")
        log.warning("%s", error)
        for name in names:
            self._active.remove(name)
            self._uploaded.discard(name)
            del self._uploads[name]
            self._dropped.append(name)
            self._report(Dropped(SERVER, name=name, round=self.round + 1, reason=why))
            self._send(name, Refused(reason=str(error), error=type(error).__name__), [])
        if len(self._active) < self._fewest:
            raise RunFailed(RandomnessError(f"{error}; {self._too_few(self._active)}"))
        self._go_on(now)

    def _too_few(self, names: Sequence[str]) -> str:
        left = f"only {', '.join(names)} is left" if len(names) == 1 else f"{len(names)} clients are left"
        return f"{left}, and the minimum is {self._fewest}"

    def _end_round(self, now: float) -> None:
        assert self.round is not None
        # In the schedule's order, so that who was faster does not decide about rounding.
        ordered = {name: self._uploads[name] for name in self.schedule.clients if name in self._uploads}
        try:
            made = self._combiner.combine(
                self._id,
                self._start,
                self.round,
                ordered,
                self.members,
                rate=self.schedule.rate(self.round, self.rounds),
                expected=sum(self._trainer.expected.get(name, 0.0) for name in ordered),
            )
        except ClientsUnseeded as unseeded:
            self._leave_out(unseeded.names, now)
            return
        except RestartedError:
            self._renew_seeds(now)
            return
        except SplitsecError as error:
            raise RunFailed(error) from error
        self._trainer.end_round({name: self._norms.get(name) for name in ordered})
        loss, accuracy = self._steps.book.loss, self._steps.book.accuracy
        if is_u(self._cut) and made and self.schedule.combine == "average":
            # What only clients know comes with their uploads, of all together.
            loss, accuracy = made[0][-MEANS:].tolist()
        # What others lost on their batches is beyond any budget.
        told = (0.0, 0.0) if self._budget.plan is not None else (loss, accuracy)
        if self.schedule.combine == "average":
            # Earlier ones cannot be repeated: a run goes on from one of the last two rounds.
            self._opened = {number: who for number, who in self._opened.items() if number >= self.round - 1}
            self._opened[self.round] = tuple(ordered)
        self.round += 1
        self._budget.end_round()
        if self._checkpoints is not None or self.round >= self.rounds:
            self._mark = mark_of(self._tail, made)
        self._save()
        # One that vanished after its upload and is back is among both.
        there = list(dict.fromkeys([*self._active, *self._idle, *sorted(self._returning)]))
        done = Combined(self.round - 1, *told, dropped=tuple(self._dropped), mark=self._mark)
        if self._relay is not None:
            self._owed = self._relay.owed(self.round, self.rounds, there)
        self._last_sent = done
        for name in there:
            self._send(name, *self._end_for(name))
        sent, received = self._traffic()
        self._report(
            RoundDone(
                SERVER,
                round=self.round,
                rounds=self.rounds,
                loss=loss,
                accuracy=accuracy,
                bytes_sent=sent,
                bytes_received=received,
                samples=self._steps.samples,
                dropped=tuple(self._dropped),
            )
        )
        self._active += self._idle
        self._next_round(now)

    def _end_for(self, name: str) -> tuple[Combined, list[torch.Tensor]]:
        """The end of the last round, as one client is told it."""
        assert self._last_sent is not None
        relay = self._relay
        if relay is None:
            return self._last_sent, self._last()
        facts = {"holder": relay.holder, "lost": relay.lost, "pad": relay.pad, "owed": self._owed}
        return msgspec.structs.replace(self._last_sent, **facts), relay.vectors_for(name)

    def _send_end(self, name: str) -> None:
        """Tell a client that comes when the run is over how the last round ended.

        Raises:
            PartyTimeoutError: in a relay, nobody has the segments any more.
        """
        if self._relay is not None and not self._relay.serves(name) and name not in self._owed:
            raise self._gone(self._relay.holder)
        self._send(name, *self._end_for(name))

    def _tell_unserved(self) -> None:
        """Tell those who wait at the end of a relay for segments that nobody can send them any more."""
        if self._relay is None or (self._owed and not self._relay.lost):
            return
        self._owed = ()
        for name in self.members:
            if not self._relay.serves(name):
                error = self._gone(self._relay.holder)
                self._send(name, Refused(reason=str(error), error=type(error).__name__), [])

    @staticmethod
    def _gone(holder: str) -> PartyTimeoutError:
        return PartyTimeoutError(
            f"the newest segments of this relay are with {holder}, which is gone: begin a new run, with checkpoints"
        )

    def _hand_on(self, name: str, body: Handed, tensors: Sequence[torch.Tensor], now: float) -> None:
        """Pass on what the holder in a relay sends for those who were owed it."""
        if self._relay is None or self.round is None:
            raise MessageError("Handed was not due")
        if not self._owed or body.pad != 2 * (self.round - 1) + 1:
            # The round for which it was asked has ended without it.
            log.info("%s hands segments on too late", name)
            return
        self._relay.hand_on(name, self._owed, self.round - 1, tensors)
        for owed in self._owed:
            if owed in self.members:
                self._send(owed, Handed(name, self._relay.pad), self._relay.vectors_for(owed))
        self._owed = ()
        self._progress = now

    def _last(self) -> list[torch.Tensor]:
        return [] if self._combiner.last is None else [self._combiner.last]

    def _save(self) -> None:
        if self._checkpoints is not None:
            assert self.round is not None
            facts = {
                "version": __version__,
                "run": self._id,
                "rounds": self.rounds,
                "identity": identity_of(self._cut, self.schedule),
                "epochs": self.schedule.epochs,
                "samples": self._samples,
                "mark": self._mark,
            }
            facts |= self._budget.facts(more=self.round < self.rounds)
            try:
                self._checkpoints.save(self.round, state_of(self._tail, self._trainer, self._combiner), facts)
            except SplitsecError as error:
                raise RunFailed(error) from error
