"""A client's part in a run's training, without sockets: what it says, and what it does with what it is told."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch
from torch import nn

from splitsec import __version__
from splitsec.cut.origin import MARK_DIGITS, Origin, origin_of, set_origin, values_digest
from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.compiler import DEFAULT_LIMIT
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.ring import check_range
from splitsec.parties.events import Joined, Report, RoundDone
from splitsec.parties.keeping import check_identity, identity_of
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.protecting import Protection
from splitsec.parties.relay import RelayMember, receivers, turn_of
from splitsec.training.aggregation import OneTime, mask_upload
from splitsec.training.alignment import Alignment
from splitsec.training.checkpoints import Checkpoints, optimizer_tensors, restore_optimizer
from splitsec.training.combinable import Combinable
from splitsec.training.compression import ActivationCoder, GradientCoder
from splitsec.training.data import Loader, Part
from splitsec.training.fitting import fitted
from splitsec.training.inspection import activation_shape, check_tokens, largest_activation
from splitsec.training.loop import FrontTrainer, StepResult, segment_digest, set_rate
from splitsec.training.messages import (
    PROTOCOL,
    Aligned,
    Batch,
    ColumnsPart,
    Combined,
    DealerBody,
    Gradient,
    Handed,
    HeadGradient,
    Hello,
    JoinRun,
    Missed,
    NewSeeds,
    Output,
    Places,
    Points,
    Return,
    RunSeed,
    SeedsLost,
    ServerBody,
    Upload,
    Waiting,
    Welcome,
)
from splitsec.training.randomness import RunRandomness
from splitsec.training.vertical import Columns, split_aligned
from splitsec.transport import expect_tensor

log = logging.getLogger(__name__)
# With a head, losses and correct labels are known to clients alone: their means travel as two more values of the masked
# upload, so that the server learns them of all clients together.
MEANS = 2
_LARGEST_LOSS = 4000.0
# To whom, what, and with which tensors.
Out: TypeAlias = tuple[str, ServerBody | DealerBody, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Purpose:
    """What a client with columns is in a run for.

    Attributes:
        trains: False for predictions alone, where the server's run has no epochs.
        asks: whether it asks for predictions; None where that is decided later.
    """

    trains: bool = True
    asks: bool | None = None


TRAINS = Purpose()


class Learner:
    """Trains front and head with the server: `begin` says hello, `take` answers each message, until `done`.

    Args:
        segments: the front and, of a U, the head; trained in place.
        part: this client's rows, or its columns where the server joins activations.
        seed: goes into the order of the batches, dropout and the like, beside a secret of this run alone.
        repeatable: without that secret, see `RunRandomness`; needs a seed.
        traffic: bytes sent to and received from the server so far.
        checkpoints: where to keep and find them; None keeps none.
        ledgers: the directory of this client's privacy ledgers; None keeps none.
        epsilon_limit: what all runs together may spend of any record, by those ledgers; 0 for no limit.
        purpose: with columns, what it is here for.

    Attributes:
        done: the run is over and the segments are final.
        welcome: what the server said at the beginning; None before.
        columns: of the rows that all clients have, in everybody's order, those for training first; standardised by the
            latter. None where rows are not aligned.
        training_rows: how many of them are for training.
        protection: what the run does for this client's privacy; None before the welcome.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        part: Part | Columns,
        *,
        name: str,
        cut: str,
        seed: int | None,
        repeatable: bool = False,
        traffic: Callable[[], tuple[int, int]],
        report: Report,
        checkpoints: Checkpoints | None = None,
        ledgers: Path | None = None,
        epsilon_limit: float = 0.0,
        purpose: Purpose = TRAINS,
    ) -> None:
        self.done = False
        self._purpose = purpose
        self.welcome: Welcome | None = None
        self._segments = segments
        self._head = segments[1] if len(segments) == 2 else None
        self._part = part
        self._name = name
        self._cut = cut
        self._repeatable = repeatable
        self._randomness = RunRandomness(seed, repeatable=repeatable)
        self._traffic = traffic
        self._report = report
        self._checkpoints = checkpoints
        self._ledgers = ledgers
        self._epsilon_limit = epsilon_limit
        self.protection: Protection | None = None
        self._saved = () if checkpoints is None else checkpoints.rounds()
        self._combinable = Combinable(segments)
        # Where gradients are summed the server sends how far the values have come from these.
        self._origin = self._combinable.flat()
        self._architecture = origin_of(segments[0]).architecture
        # Of the segments at the beginning of the round, see `Origin`.
        self._mark = ""
        self._begins = segment_digest(*segments)
        self._taken = 0
        self._run = ""
        self._marks: tuple[str, ...] = ()
        self._identity: dict[str, Any] = {}
        self._data = _digest_of(part)
        if checkpoints is not None and self._saved:
            _, facts = checkpoints.load(self._saved[-1])
            self._begins, self._run = facts["begins"], facts["run"]
            self._randomness = RunRandomness(facts["seed"], secret=bytes.fromhex(facts.get("secret", "")))
            self._marks = tuple(checkpoints.load(number)[1].get("mark", "") for number in self._saved)
            self._identity = facts.get("identity", {})
            self._check_own(facts, seed, checkpoints)
            self._taken = facts.get("taken", 0)
        self._trainer: FrontTrainer
        self._seeds = RunSeed(b"")
        self._used = OneTime()
        self._relay: RelayMember | None = None
        # The round that was uploaded last and its vectors, until it is over; and whether seeds are being replaced.
        self._uploaded: tuple[int, list[torch.Tensor]] | None = None
        self._renewing = False
        self._round = 0
        self._alignment: Alignment | None = None
        self.columns: Columns | None = None
        self.training_rows = 0
        # Batches of this round: how many there are, sent, and answered; and the number of its first one.
        self._steps = self._sent = self._answered = self._first = 0
        self._missed = False

    def _check_own(self, facts: dict[str, Any], seed: int | None, checkpoints: Checkpoints) -> None:
        """Raise `ConfigError` where this client's seed or data are not those that its run began with."""
        if self._repeatable == bool(self._randomness.secret):
            begun = str(not self._repeatable).lower()
            raise ConfigError(
                f"the checkpoints in {checkpoints.directory} are of a run with repeatable = {begun}: "
                "set it back to go on with that run, or remove the checkpoints to begin anew"
            )
        if seed is not None and seed != self._randomness.seed:
            raise ConfigError(
                f"the checkpoints in {checkpoints.directory} are of a run with another seed: set it back to go on with "
                "that run, or remove the checkpoints to begin anew"
            )
        if facts.get("data", self._data) != self._data:
            raise ConfigError(
                f"the data of {self._name} is not that which the run in {checkpoints.directory} began with, or "
                "something else is done to its columns: go on with the same, or remove the checkpoints of all "
                "parties to begin anew"
            )

    def begin(self) -> list[Out]:
        """What to say first; raises `ConfigError` for data that this client's own segments cannot learn from."""
        hello = Hello(
            protocol=PROTOCOL,
            version=__version__,
            cut=self._cut,
            segments=self._combinable.description,
            begins=self._begins,
            parameters=self._combinable.parameters,
            values=self._length,
            samples=len(self._part.ids) if isinstance(self._part, Columns) else len(self._part.train_labels),
            rounds=self._saved or (0,),
            run=self._run,
            shape=self._inspected(),
            columns=self._columns_part(),
            marks=self._marks,
            architecture=self._architecture,
        )
        return [(SERVER, hello, [])]

    def _inspected(self) -> tuple[int, ...]:
        """The shape of one row's activation."""
        if isinstance(self._part, Columns):
            self._part, features = fitted(self._part, self._segments[0])
            return (features,)
        self._part.check()
        front = self._segments[0]
        doubts = self._part.doubts()
        for what in ("train_images", "test_images"):
            check_tokens(getattr(self._part, what), front, what)
        shape = activation_shape(front, self._part.train_images, cut=self._cut, what="train_images")
        largest = largest_activation(front, self._part.train_images, cut=self._cut, what="train_images")
        if not largest < DEFAULT_LIMIT:
            doubts.append(
                f"the front makes activations of magnitude {largest:.4g} of these images before it is trained, and "
                f"encrypted predictions take magnitudes below about {DEFAULT_LIMIT:g}: scale the images, such as by "
                "their largest value, unless training is sure to make the activations smaller"
            )
        for doubt in doubts:
            log.warning("%s: %s", self._name, doubt)
        return shape

    def _columns_part(self) -> ColumnsPart | None:
        if not isinstance(self._part, Columns):
            return None
        origin = origin_of(self._segments[0])
        return ColumnsPart(
            labels=self._part.labels is not None,
            trains=self._purpose.trains,
            trained=self._part.scaling.given is not None,
            asks=self._purpose.asks,
            mark=origin.mark,
            run=origin.run,
            rounds=origin.rounds,
        )

    def take(self, body: ServerBody | DealerBody, tensors: Sequence[torch.Tensor]) -> list[Out]:
        """What to say to a message of the server or the dealer.

        Raises:
            MessageError, RangeError: the message cannot be used.
        """
        match body:
            case Welcome():
                return self._welcomed(body, tensors)
            case RunSeed():
                return self._seeded(body)
            case Points(owner):
                return self._pass_on(owner, tensors)
            case Places():
                return self._align(tensors)
            case Aligned():
                return self._aligned()
            case Output() if self._fits(body):
                return self._turn(body, tensors)
            case Gradient() if self._fits(body):
                return self._learn(body, tensors)
            case Combined():
                return self._combined(body, tensors)
            case Handed():
                return self._handed(body, tensors)
            case NewSeeds():
                return self._renew(body)
            case Missed(number):
                if number < self._round or self._missed:
                    return []
                self._missed = True
                return [(SERVER, Return(number), [])]
            case Waiting() | Output() | Gradient():
                return []
            case other:
                raise MessageError(f"{type(other).__name__} was not due in training")

    def _fits(self, body: Output | Gradient) -> bool:
        # An answer to a round that went on without this client comes to nothing.
        return not self._missed and body.round == self._round and body.step == self._answered

    def _welcomed(self, welcome: Welcome, tensors: Sequence[torch.Tensor]) -> list[Out]:
        first = self.welcome is None
        self.welcome = welcome
        schedule = welcome.schedule
        if first:
            self._report(Joined(self._name, SERVER))
        if isinstance(self._part, Columns) != (schedule.join is not None):
            has, wants = ("columns", "rows") if isinstance(self._part, Columns) else ("rows", "columns")
            raise ConfigError(
                f"{self._name} has {has} of the data, but the server's run is one of clients with {wants}"
            )
        self._relay = RelayMember(self._name, schedule.clients, self._used) if schedule.combine == "relay" else None
        if self.protection is not None:
            # Its front may be called in plain, so what another welcome put around it comes off.
            self._trainer.close()
        if self._run and welcome.run != self._run:
            # No two runs have the same secret, also where checkpoints of another lie about.
            self._randomness = RunRandomness(self._randomness.seed, repeatable=self._repeatable)
        # A second welcome goes on where the first left off.
        taken = self._taken if self.protection is None else max(self._taken, self.protection.taken)
        protection = self.protection = Protection(
            self._name,
            welcome,
            records=self._part.ids if isinstance(self._part, Columns) else self._part.train_images,
            trained=self._combinable.trained,
            directory=self._ledgers,
            taken=taken,
            epsilon_limit=self._epsilon_limit,
        )
        if schedule.privacy.epsilon:
            from splitsec.privacy.record import check_private

            for segment in self._segments:
                check_private(segment)
        if isinstance(self._part, Columns):
            self._alignment = Alignment(self._part.ids)
        else:
            self._load_from(protection.loader(self._part, self._randomness.order))
        self._trainer = FrontTrainer(
            self._segments[0],
            head=self._head,
            learning_rate=schedule.learning_rate,
            cut=self._cut,
            in_flight=schedule.in_flight,
            proximal=schedule.proximal,
            randomness=self._randomness.generator(),
            privacy=protection.front(),
        )
        self._round = welcome.round
        self._missed = welcome.wait
        self._mark = welcome.mark
        if schedule.epochs:
            # From here on the values are those of a run that is not over.
            self._remember(Origin(architecture=self._architecture))
        if welcome.run != self._run:
            # What is kept here is of another run.
            self._run, self._saved, self._taken = welcome.run, (), 0
        elif self._identity and self._checkpoints is not None:
            check_identity(self._identity, identity_of(self._cut, schedule), self._checkpoints.directory)
        if welcome.wait and schedule.combine == "none" and not self._saved:
            raise ConfigError(f"{self._name} has no checkpoint to come back with, and nothing is combined in this run")
        if welcome.round in self._saved:
            self._restore(welcome.round)
        elif self._saved:
            # The newest state of its own, for the optimizer; the segments come from the others.
            self._restore(self._saved[-1])
        if tensors:
            self._load(tensors)
        elif welcome.round and welcome.round not in self._saved and not welcome.wait:
            raise ConfigError(f"{self._name} has no checkpoint of round {welcome.round}, from which the run goes on")
        if welcome.round >= welcome.rounds:
            # Rows are aligned all the same: predictions need it.
            self._end(not welcome.wait and schedule.join is None)
        elif self._checkpoints is not None and not welcome.wait:
            self._save()
        if schedule.join is None and (self.done or schedule.combine == "none"):
            return self._begin_round()
        return [(DEALER, self._join_run(welcome.round), [])]

    def _load_from(self, loader: Loader) -> None:
        assert self.welcome is not None
        schedule = self.welcome.schedule
        if loader.per_epoch == 1 and schedule.combine == "average" and not schedule.privacy.epsilon:
            log.warning(
                "every step takes all %d rows of %s, so that no order of rows differs from run to run: the sums of a "
                "run with this client and of one without it open its update; ask for a smaller batch size",
                loader.samples,
                self._name,
            )
        self._loader = loader
        self._forget()

    def close(self) -> None:
        """Take off what training has put around the segments."""
        if self.protection is not None:
            self._trainer.close()

    def seeds_lost(self) -> list[Out]:
        """Tell the server that the dealer does not know this start of the run, and wait for a new one."""
        assert self.welcome is not None
        return [(SERVER, SeedsLost(self.welcome.start), [])]

    def _renew(self, body: NewSeeds) -> list[Out]:
        """Ask a dealer that was started again for seeds."""
        assert self.welcome is not None
        self.welcome = msgspec.structs.replace(self.welcome, start=body.start)
        self._renewing = True
        return [(DEALER, self._join_run(body.round), [])]

    def _seeded(self, seeds: RunSeed) -> list[Out]:
        before, self._seeds = self._seeds, seeds
        renewing, self._renewing = self._renewing and bool(before.seed), False
        if not renewing:
            # Also where the dealer was started again before this client had its first seed.
            return self._begin_round() if self._alignment is None else self._own_points()
        uploaded = self._uploaded
        if uploaded is None or uploaded[0] != self._round:
            return []
        # The same values under another mask: what they are was settled when they were first sent.
        number, (vector, *rest) = uploaded
        self._use_mask(number)
        moved = Stream(seeds.seed, number).ring(vector.shape) - Stream(before.seed, number).ring(vector.shape)
        self._uploaded = number, [vector + moved, *rest]
        return [(SERVER, Upload(number), self._uploaded[1])]

    def _join_run(self, first_round: int) -> JoinRun:
        assert self.welcome is not None
        assert self.protection is not None
        partners = self._others if self._relay is not None or self.welcome.schedule.join is not None else ()
        noise = self.protection.shares()
        return JoinRun(self.welcome.run, self.welcome.start, first_round, noise, partners, fresh_seed())

    def _own_points(self) -> list[Out]:
        assert self._alignment is not None
        return [(SERVER, Points(self._name), [self._alignment.mine()])]

    def _pass_on(self, owner: str, tensors: Sequence[torch.Tensor]) -> list[Out]:
        if self._alignment is None or len(tensors) != 1:
            raise MessageError("Points were not due")
        return [(SERVER, Points(owner), [self._alignment.pass_on(tensors[0], owner)])]

    def _align(self, tensors: Sequence[torch.Tensor]) -> list[Out]:
        if self._alignment is None or self.welcome is None or len(tensors) != 1:
            raise MessageError("Places were not due")
        assert isinstance(self._part, Columns)
        rows = self._alignment.common(tensors[0])
        schedule = self.welcome.schedule
        # Without training all rows are for prediction, in the order of their ids.
        train, test = (
            split_aligned(len(rows), schedule.held_out, schedule.order) if schedule.epochs else ([], range(len(rows)))
        )
        self.training_rows = len(train)
        self.columns = self._part.take([rows[place] for place in (*train, *test)]).standardised(len(train))
        return [(SERVER, Aligned(len(rows)), [])]

    def _aligned(self) -> list[Out]:
        if self.columns is None or self.welcome is None:
            raise MessageError("Aligned was not due")
        labels = self.columns.labels
        count = self.training_rows
        schedule = self.welcome.schedule
        rows = self.columns.values[:count], None if labels is None else labels[:count]
        self._load_from(Loader(*rows, batch_size=schedule.batch_size, seed=schedule.order))
        self._end(self._round >= self.welcome.rounds)
        return self._begin_round()

    @property
    def _others(self) -> tuple[str, ...]:
        assert self.welcome is not None
        return tuple(client for client in self.welcome.schedule.clients if client != self._name)

    @property
    def _pairs(self) -> dict[str, bytes]:
        """What this client shares with each other client, and with nobody else."""
        if len(self._seeds.pairs) != len(self._others):
            raise MessageError("the dealer gave other seeds than were asked for")
        return dict(zip(self._others, self._seeds.pairs, strict=True))

    def pair_seed(self, other: str) -> bytes:
        """Return what this client and another share, and nobody else; raises `MessageError` for a stranger."""
        if other not in self._pairs:
            raise MessageError(f"{other} takes no part in this run")
        return self._pairs[other]

    def _forget(self) -> None:
        """Both ends remember nothing of earlier batches."""
        assert self.welcome is not None
        kind, samples = self.welcome.schedule.compress, self._loader.samples
        self._coders = ActivationCoder(kind, samples), GradientCoder(kind, samples)

    def _begin_round(self) -> list[Out]:
        assert self.welcome is not None
        schedule = self.welcome.schedule
        if self.done:
            self._trainer.close()
        if self.done or self._missed or not self._turn_is_mine():
            return []
        if self._relay is not None and self._relay.stale:
            # The newest segments are on their way.
            return []
        assert self.protection is not None
        self._trainer.begin_round()
        set_rate(self._trainer.optimizer, schedule.rate(self._round, self.welcome.rounds))
        self._steps = self.protection.steps or schedule.every or self._loader.per_epoch
        rounds = self._round // len(schedule.clients) if schedule.combine == "relay" else self._round
        self._first = rounds * self._steps
        self._sent = self._answered = 0
        batches = (self._loader.rows(self._first + step) for step in range(self._steps))
        self.protection.begin_round(self._combinable.flat, batches)
        return self._next()

    def _turn_is_mine(self) -> bool:
        assert self.welcome is not None
        schedule = self.welcome.schedule
        return schedule.combine != "relay" or turn_of(schedule.clients, self._round) == self._name

    def _next(self) -> list[Out]:
        """As many batches as may be on their way; after the last one's answer the upload."""
        assert self.welcome is not None
        combine = self.welcome.schedule.combine
        most = min(self._steps, self._answered + self.welcome.schedule.in_flight)
        out: list[Out] = []
        while self._sent < most:
            images, labels, rows = self._loader.batch(self._first + self._sent)
            activation = self._trainer.forward(images)
            tensors = self._coders[0].pack(activation, rows)
            if self._head is None and labels is not None:
                tensors.append(labels)
            out.append((SERVER, Batch(self._round, self._sent, tuple(activation.shape[1:])), tensors))
            self._sent += 1
        if self._answered == self._steps:
            vectors = self._upload()
            self._uploaded = (self._round, vectors) if combine == "average" else None
            out.append((SERVER, Upload(self._round), vectors))
        return out

    def _turn(self, output: Output, tensors: Sequence[torch.Tensor]) -> list[Out]:
        if self._head is None or len(tensors) != 1:
            raise MessageError("Output was not due")
        _, labels, _ = self._loader.batch(self._first + output.step)
        assert labels is not None
        gradient = self._trainer.turn(tensors[0], labels)
        return [(SERVER, HeadGradient(output.round, output.step), [gradient])]

    def _learn(self, body: Gradient, tensors: Sequence[torch.Tensor]) -> list[Out]:
        shape = self._trainer.due
        if shape is None:
            raise MessageError("Gradient was not due")
        assert self.protection is not None
        norms = None
        if self.protection.sums_steps and tensors:
            norms = expect_tensor(tensors[-1], what="norms", dtype=torch.float32, shape=(shape[0],))
            tensors = tensors[:-1]
        gradient = self._coders[1].unpack(tensors, shape)
        if self._head is None:
            self._trainer.book.add([(StepResult(body.loss, body.correct, gradient), len(gradient))])
        self._trainer.backward(gradient, norms)
        self._answered += 1
        return self._next()

    def _upload(self) -> list[torch.Tensor]:
        assert self.welcome is not None
        combine = self.welcome.schedule.combine
        if combine == "none":
            return []
        assert self.protection is not None
        flat = self._flat()
        if self._relay is not None:
            names = receivers(self.welcome.schedule.clients, self._round, self.welcome.rounds)
            return self._relay.seal(flat, names, self._pairs, round_number=self._round, again=False)
        self._use_mask(self._round)
        if self.protection.noisy:
            noisy = self.protection.upload(flat, seed=self._seeds.seed, round_number=self._round)
            return [noisy, self._trainer.norms] if self.protection.sums_steps else [noisy]
        weight = self._loader.samples
        return [mask_upload(flat, weight=weight, seed=self._seeds.seed, round_number=self._round)]

    def _use_mask(self, number: int) -> None:
        """Note that a round's mask under the seed at hand is used, whatever the server says of rounds."""
        self._used.add(self._seeds.seed, str(number), what=f"the mask of round {number + 1}")

    def _flat(self) -> torch.Tensor:
        """The values that others get of this client, as one vector, float64."""
        assert self.protection is not None
        if self.protection.sums_steps:
            flat = self._combinable.arranged(self._trainer.take_sum())
        else:
            flat = self._combinable.flat()
            if self.protection.silent:
                flat = self.protection.only_trained(flat, self._origin)
        if self._head is None:
            return flat
        loss, accuracy = self._own_means()
        means = [0.0, 0.0] if self.protection.silent else [min(loss, _LARGEST_LOSS), accuracy]
        return torch.cat([flat, torch.tensor(means, dtype=torch.float64)])

    def _handed(self, body: Handed, tensors: Sequence[torch.Tensor]) -> list[Out]:
        """Take the newest segments of a relay, and begin the round that waited for them."""
        if self._relay is None or self.welcome is None or not self._relay.stale or len(tensors) != 1:
            return []
        self._load([self._relay.open(tensors[0], body.holder, body.pad, self._pairs, self._length)])
        self._end(self._round >= self.welcome.rounds)
        return self._begin_round()

    def _own_means(self) -> tuple[float, float]:
        """Mean loss and accuracy of this client's own batches of the round."""
        return self._trainer.book.loss, self._trainer.book.accuracy

    def _combined(self, done: Combined, tensors: Sequence[torch.Tensor]) -> list[Out]:
        assert self.welcome is not None
        if done.round < self._round and not (self._missed and done.round + 1 == self._round):
            return []
        relay = self._relay
        if relay is not None:
            relay.told(done, tensors, self.welcome.rounds)
            if tensors:
                tensors = [relay.open(tensors[0], done.holder, done.pad, self._pairs, self._length)]
        if tensors:
            self._load(tensors)
        if self._name in done.dropped or self._missed:
            self._forget()
        self._missed = False
        self._round = done.round + 1
        self._mark = done.mark
        out: list[Out] = []
        if relay is not None and relay.owes:
            vectors = relay.seal(self._flat(), relay.owes, self._pairs, round_number=done.round, again=True)
            out.append((SERVER, Handed(self._name, 2 * done.round + 1), vectors))
        self._end(self._round >= self.welcome.rounds and not (relay is not None and relay.stale))
        if self._checkpoints is not None:
            self._save()
        assert self.protection is not None
        loss, accuracy = self._own_means() if self.protection.silent else (done.loss, done.accuracy)
        mine = (self._own_means()[1] if self._answered else None) if self.protection.ledger else None
        epoch = (self._first + self._answered) / max(1, self._loader.per_epoch)
        self.protection.end_round(self._round, epoch=epoch, accuracy=mine)
        sent, received = self._traffic()
        self._report(
            RoundDone(
                self._name,
                round=self._round,
                rounds=self.welcome.rounds,
                loss=loss,
                accuracy=accuracy,
                bytes_sent=sent,
                bytes_received=received,
                dropped=done.dropped,
            )
        )
        return out + self._begin_round()

    def _end(self, over: bool) -> None:
        """Note whether the run is over; then the segments remember which tail they belong to."""
        self.done = over
        assert self.welcome is not None
        # Without training the segments are what they were.
        if over and self.welcome.schedule.epochs:
            digest = values_digest(item for one in self._segments for item in one.state_dict().items())
            self._remember(
                Origin(
                    mark=self._mark,
                    architecture=self._architecture,
                    run=self.welcome.run,
                    rounds=self.welcome.rounds,
                    digest=digest,
                )
            )

    def _remember(self, origin: Origin) -> None:
        for segment in self._segments:
            set_origin(segment, origin)

    @property
    def _length(self) -> int:
        """How many values an upload has."""
        return self._combinable.values + (MEANS if self._head is not None else 0)

    def _load(self, tensors: Sequence[torch.Tensor]) -> None:
        (average,) = tensors
        expect_tensor(average, what="the combined segments", dtype=torch.float64, shape=(self._length,))
        check_range(average, limit=float("inf"), what="the combined segments")
        values = average[: self._combinable.values]
        assert self.welcome is not None
        assert self.protection is not None
        summed = self.protection.sums_steps
        values = self._origin + values if summed else values
        if self.protection.silent:
            values = self.protection.only_trained(values, self._combinable.flat())
        self._combinable.load(values)

    def _save(self) -> None:
        assert self._checkpoints is not None
        state = {key: value for segment in self._segments for key, value in segment.state_dict().items()}
        tensors = {f"segment.{name}": one for name, one in state.items()}
        tensors |= optimizer_tensors(self._trainer.optimizer)
        facts: dict[str, Any] = {"name": self._name, "cut": self._cut}
        facts |= {"seed": self._randomness.seed, "secret": self._randomness.secret.hex()}
        facts |= {"begins": self._begins, "run": self._run, "mark": self._mark, "version": __version__}
        assert self.welcome is not None
        facts |= {"identity": identity_of(self._cut, self.welcome.schedule), "data": self._data}
        if self.protection is not None and self.protection.ledger is not None:
            facts["taken"] = self.protection.begun
        self._checkpoints.save(self._round, {**tensors, "randomness": self._trainer.randomness.state}, facts)

    def _restore(self, number: int) -> None:
        assert self._checkpoints is not None
        tensors, _ = self._checkpoints.load(number)
        for segment in self._segments:
            segment.load_state_dict({key: tensors[f"segment.{key}"] for key in segment.state_dict()})
        restore_optimizer(self._trainer.optimizer, tensors)
        self._trainer.randomness.state = tensors["randomness"]


def _digest_of(part: Part | Columns) -> str:
    """Return a digest of the data that a client trains on."""
    if isinstance(part, Columns):
        labels = torch.empty(0) if part.labels is None else part.labels
        # With how they are scaled: a front goes on with the columns that it began with.
        texts = "\n".join([*part.ids, *part.names, part.scaling.described])
        ids = hashlib.sha256(texts.encode()).hexdigest()
        return ids[:MARK_DIGITS] + values_digest([("values", part.values), ("labels", labels)])
    return values_digest([("images", part.train_images), ("labels", part.train_labels)])
