"""What a client does for its privacy in a run: checks the plan, samples, clips, adds noise, and keeps the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from splitsec.data.loaders import Loader, PoissonLoader
from splitsec.data.rows import Part
from splitsec.errors import BudgetError, ConfigError
from splitsec.mpc.prg import fresh_seed
from splitsec.privacy.accounting import check_left, epsilon_of
from splitsec.privacy.dp_updates import NoiseShares, clip_update, noise_of_sum
from splitsec.privacy.history import RunHistory, epsilon_together, steps_of
from splitsec.privacy.ledger import CLIENT, NOISY, RECORD, Ledger, Point, ledger_path, read_ledger
from splitsec.privacy.plan import PrivacyPlan
from splitsec.settings.privacy import Privacy, check_delta, check_epsilon
from splitsec.training.aggregation.masking import FRACTION_BITS, mask_update
from splitsec.training.front import FrontPrivacy
from splitsec.training.messages import Welcome
from splitsec.training.protections.base import protections_of


class ClientPrivacy:
    """One client's side of a run's privacy.

    Args:
        records: of this client: the inputs of its rows, or their ids. They stay here.
        trained: which of the values that it uploads are trained, bool (values,): the others stay as they are.
        directory: where to keep the ledger; None keeps it in memory.
        taken: steps of the mechanism that an earlier life of this client is known to have begun.
        epsilon_limit: what all runs together may spend of any record of this client, by the ledgers in `directory`, at
            the run's delta; 0 for no limit.

    Attributes:
        ledger: None where the run has neither a budget nor a guard.
        taken: steps of the mechanism that have begun, those of an earlier life among them.

    Raises:
        ConfigError: the plan does not keep the budget, or there is no directory to keep a limit by.
        BudgetError: the budget is spent, or the run would exceed the limit.
        MessageError: the run's name could not be that of a file.
    """

    def __init__(
        self,
        name: str,
        welcome: Welcome,
        *,
        records: torch.Tensor | Sequence[str],
        trained: torch.Tensor,
        directory: Path | None = None,
        taken: int = 0,
        epsilon_limit: float = 0.0,
    ) -> None:
        self._welcome = welcome
        self._rules = rules = welcome.settings.privacy
        self._samples = samples = len(records)
        self._trained = trained
        self._plan = welcome.plan
        self._begun = torch.empty(0, dtype=torch.float64)
        self._protections = protections_of(rules, samples)
        # Since the last point.
        self._accuracies: list[float] = []
        self.taken = 0
        self._path = None if directory is None else ledger_path(directory, welcome.run)
        self._allowed = 0
        self._limit = epsilon_limit
        self._history: RunHistory | None = None
        self.ledger: Ledger | None = None
        if epsilon_limit:
            check_limit(rules, epsilon_limit, directory)
        if rules.epsilon:
            _check_plan(self._plan)
            if rules.by_record:
                check_delta(rules.delta, samples)
        if rules.epsilon or self._protections:
            self.ledger = self._open_ledger(name)
            self.ledger.limit = epsilon_limit
            if directory is not None:
                self._history = RunHistory(directory)
                self.ledger.data = self._history.note(records)
        if self._plan is not None and self.ledger is not None:
            # Steps of rounds before this one count, whether this client has a memory of them or not; the ledger itself
            # is charged an epoch ahead.
            self.taken = max(taken, self._plan.steps * welcome.round)
            # By this client's own accounting, whatever the server's is.
            self._allowed = self._plan.allowed(rules, self._plan.steps * welcome.rounds + self.taken)
            self._check_limit(self._plan, self._plan.steps * (welcome.rounds - welcome.round))
            charged = self.ledger.steps_of(self._mechanism)
            if self.taken > charged:
                self._charge(self.ledger, self._plan, charged)

    def _open_ledger(self, name: str) -> Ledger:
        """Return the run's ledger that is kept, or a new one."""
        run, rules = self._welcome.run, self._rules
        if self._path is None or not self._path.exists():
            return Ledger(name, run, rules.epsilon or 0.0, rules.delta, rules.accountant)
        ledger = read_ledger(self._path)
        if ledger.run != run:
            raise ConfigError(f"{self._path} is the ledger of another run; put it back where it was")
        return ledger

    @property
    def _mechanism(self) -> str:
        return RECORD if self._rules.by_record else CLIENT if self._rules.by_client else NOISY

    @property
    def begun(self) -> int:
        """Return the steps of the mechanism that are taken when the next round is over."""
        return self.taken + (0 if self._plan is None else self._plan.steps)

    @property
    def sums_steps(self) -> bool:
        """Return whether an upload is the gradient of a step."""
        return self._rules.sums_steps

    @property
    def noisy(self) -> bool:
        """Return whether uploads carry this client's share of the noise."""
        return self._rules.by_client or self._rules.sums_steps

    @property
    def silent(self) -> bool:
        """Return whether losses, and values that are not trained, stay with the client, since no budget covers them."""
        return self._rules.epsilon is not None

    @property
    def steps(self) -> int | None:
        """Return the training steps in a round, where the plan says; None leaves it to the settings."""
        return self._plan.steps if self._plan is not None and self._rules.by_record else None

    def loader(self, part: Part, seed: int | bytes) -> Loader:
        """Return the batches of this client's rows; `seed` is that of `Loader`."""
        settings = self._welcome.settings
        if self._rules.by_record and self._plan is not None:
            return PoissonLoader(
                part.train_images,
                part.train_labels,
                rate=self._plan.rate,
                per_epoch=self._plan.per_epoch,
                seed=fresh_seed(),
            )
        return Loader(part.train_images, part.train_labels, batch_size=settings.batch_size, seed=seed)

    def front(self) -> FrontPrivacy:
        """Return what protects the front's steps."""
        rules, gradients, expected = self._rules, None, 0.0
        if rules.by_record and self._plan is not None:
            gradients = self._plan.front(rules)
            expected = self._plan.rate * self._samples if rules.local else 0.0
        return FrontPrivacy(gradients, expected, self._protections)

    def shares(self) -> NoiseShares | None:
        """Return the noise that the sum of all clients' uploads carries."""
        if not self.noisy or self._plan is None:
            return None
        return noise_of_sum(
            clip=self._rules.clip,
            noise=self._plan.noise,
            part=self._rules.clip if self._rules.sums_steps else self._rules.front_clip,
            length=int(self._trained.sum()),
            shares=len(self._welcome.settings.clients),
            bits=FRACTION_BITS,
        )

    def begin_round(self, begun: Callable[[], torch.Tensor], batches: Iterable[torch.Tensor]) -> None:
        """Charge a round before its first step.

        Args:
            begun: gives the values that the round begins with, float64.
            batches: rows of its batches.

        Raises:
            BudgetError: the round would exceed the budget.
        """
        rules, ledger = self._rules, self.ledger
        if ledger is None:
            return
        if rules.by_client:
            self._begun = begun()
        if self._plan is not None:
            steps = self._plan.steps
            check_left(steps, spent=self.taken, allowed=self._allowed, epsilon=rules.epsilon or 0.0, delta=rules.delta)
            self.taken += steps
            charged = ledger.steps_of(self._mechanism)
            if self.taken > charged:
                self._charge(ledger, self._plan, charged)
        if self._protections:
            rows = list(batches)
            for protection in self._protections:
                protection.charge(ledger, rows)
            self._save()

    def _earlier(self) -> list[Ledger]:
        """Return the ledgers of other runs that shared a record with this one."""
        if self._history is None or self.ledger is None:
            return []
        return self._history.sharing(self.ledger.data, run=self.ledger.run)

    def _check_limit(self, plan: PrivacyPlan, to_come: int) -> None:
        """Raise `BudgetError` where `to_come` more steps exceed what all runs together may spend."""
        if not self._limit or self.ledger is None:
            return
        rules, earlier = self._rules, self._earlier()
        history = [(plan.noise, plan.rate, min(self._allowed, self.taken + to_come))]
        total = epsilon_of([*steps_of(earlier), *history], delta=rules.delta, accountant=rules.accountant)
        if total > self._limit:
            spent = epsilon_together(earlier, delta=rules.delta, accountant=rules.accountant)
            alone = epsilon_of(history, delta=rules.delta, accountant=rules.accountant)
            raise BudgetError(
                f"this client's data may spend epsilon {self._limit:g} over all runs: {len(earlier)} earlier ones have "
                f"spent {spent:.3f}, this one wants {alone:.3f}, together {total:.3f} at delta {rules.delta:g}; ask "
                "for a run with a smaller epsilon, or raise epsilon_limit"
            )

    def _charge(self, ledger: Ledger, plan: PrivacyPlan, charged: int) -> None:
        """Charge what is begun now, and as much as comes with it up to the end of an epoch: accounting takes time."""
        rules = self._rules
        ahead = min(self._allowed, -(-self.taken // plan.per_epoch) * plan.per_epoch) if rules.by_record else 0
        total = max(self.taken, ahead)
        parameters = {"clip": rules.clip}
        if self.noisy:
            parameters["shares"] = len(self._welcome.settings.clients)
        whom = "one record of this client" if rules.by_record else "all data of this client"
        against = "the server; against another client see its own figure" if self.noisy else "the server"
        ledger.charge(
            self._mechanism,
            covers=f"{whom}, in what is trained, against everybody but {against}",
            noise=plan.noise,
            rate=plan.rate,
            steps=total - charged,
            parameters=parameters,
        )
        # Read anew, since another run over the same data may be going on.
        earlier = self._earlier()
        ledger.earlier = [ledger.run for ledger in earlier]
        ledger.together = (
            epsilon_together([ledger, *earlier], delta=rules.delta, accountant=rules.accountant)
            if earlier
            else ledger.spent
        )
        self._save()
        if self._limit and ledger.together > self._limit:
            raise BudgetError(
                f"this client's data may spend epsilon {self._limit:g} over all runs, and the next steps would make it "
                f"{ledger.together:.3f}, together with {len(earlier)} other runs; the model stays as it is"
            )

    def upload(self, flat: torch.Tensor, *, seed: bytes, round_number: int) -> torch.Tensor:
        """Return the upload with this client's share of the noise, under its mask.

        Args:
            flat: by client the values now, whose change is clipped; else the sum of a step's clipped gradients.
        """
        noise = self.shares()
        assert noise is not None
        count = len(self._trained)
        update, begun = torch.zeros_like(flat), torch.zeros_like(flat)
        if self._rules.by_client:
            begun[:count] = self._begun
            update[:count] = clip_update((flat[:count] - self._begun) * self._trained, self._rules.front_clip)
        else:
            update[:count] = flat[:count] * self._trained
        share = torch.zeros(len(flat), dtype=torch.int64)
        share[:count] = noise.share(count) * self._trained
        return mask_update(begun, update, noise=share, seed=seed, round_number=round_number)

    def only_trained(self, values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return values with a client's own in the place of those that are not trained.

        With a budget those carry no noise on the way to the others, and only noise on the way back.
        """
        return torch.where(self._trained, values, own)

    def end_round(self, number: int, *, epoch: float, accuracy: float | None) -> None:
        """Note what has been spent when a round is over."""
        ledger = self.ledger
        if ledger is None:
            return
        if accuracy is not None:
            self._accuracies.append(accuracy)
        before = ledger.points[-1].epoch if ledger.points else 0.0
        # A point an epoch.
        if epoch < int(before) + 1 and number < self._welcome.rounds:
            return
        known = [entry for entry in ledger.entries if entry.mechanism == self._mechanism]
        mean = sum(self._accuracies) / len(self._accuracies) if self._accuracies else None
        self._accuracies = []
        steps, epsilon = (known[0].steps, known[0].epsilon or 0.0) if known else (0, 0.0)
        ledger.points.append(Point(number, epoch, steps, epsilon, mean))
        self._save()

    def _save(self) -> None:
        if self.ledger is not None and self._path is not None:
            self.ledger.save(self._path)


def _check_plan(plan: PrivacyPlan | None) -> None:
    """Raise `ConfigError` for a budget's plan that is missing or keeps nothing."""
    if plan is None or not plan.noise > 0 or not 0 < plan.rate <= 1 or min(plan.steps, plan.per_epoch) < 1:
        raise ConfigError("the server names a budget and no plan to keep it; update it")


def check_limit(rules: Privacy, limit: float, directory: Path | None) -> None:
    """Raise an error where a limit over all runs cannot be kept in a run of these rules.

    Raises:
        ConfigError: the limit is no epsilon, or there is no directory with the ledgers of earlier runs.
        BudgetError: the run has no budget, so that what it spends has no bound.
    """
    check_epsilon(limit)
    if directory is None:
        raise ConfigError(
            "epsilon_limit counts earlier runs by their ledgers: say where they are kept (ledgers, or checkpoints)"
        )
    if not rules.epsilon:
        raise BudgetError(
            f"this client's data may spend epsilon {limit:g} over all runs, and this run has no budget: nothing bounds "
            "what it spends; ask the server for privacy = {epsilon = ...}, or leave epsilon_limit out"
        )
