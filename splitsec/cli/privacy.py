"""`splitsec privacy`, `splitsec pate` and `splitsec audit`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, terminated_like_interrupted, write_json
from splitsec.errors import ConfigError
from splitsec.files import whole_file

if TYPE_CHECKING:
    from rich.console import Console

    from splitsec.privacy.ledger import Ledger


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add what measures privacy."""
    privacy = commands.add_parser("privacy", help="what a run has cost in privacy")
    questions = privacy.add_subparsers(title="questions", required=True, metavar="WHAT")
    ledger = questions.add_parser("ledger", parents=[common], help="each client's ledger of a run")
    ledger.add_argument("run_directory", type=Path, metavar="RUN", help="a run's directory, or one ledger's file")
    ledger.add_argument("--json", type=Path, metavar="FILE", help="also write the ledgers to this file")
    ledger.add_argument("--plot", type=Path, metavar="FILE", help="draw epsilon against accuracy (png, pdf, svg)")
    ledger.set_defaults(run=_ledger)

    pate = commands.add_parser(
        "pate",
        parents=[common],
        help="learn from noisy votes of teachers that are counted on shares, all on this machine",
    )
    pate.add_argument("--dataset", choices=["digits", "mnist"], default="digits", help="real data to use (digits)")
    pate.add_argument("--data-dir", type=Path, metavar="DIR", help="for mnist: the directory above MNIST/raw")
    pate.add_argument("--teachers", type=int, metavar="N", help="each with rows of its own (10; mnist 50)")
    pate.add_argument("--queries", type=int, metavar="N", help="public rows to vote on (22; mnist 800)")
    pate.add_argument("--threshold", type=float, metavar="VOTES", help="least for an answer (1; mnist 10)")
    pate.add_argument("--threshold-noise", type=float, metavar="VOTES", help="standard deviation (2.5; mnist 12)")
    pate.add_argument("--vote-noise", type=float, metavar="VOTES", help="on each count (1.5; mnist 7)")
    pate.add_argument("--delta", type=float, default=1e-5, metavar="D", help="at most 1 / private rows (1e-5)")
    pate.add_argument("--seed", type=int, default=0, help="which rows are public, and the first weights (0)")
    pate.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    pate.set_defaults(run=_pate)
    _audit_options(commands, common)


def _audit_options(commands: Commands, common: argparse.ArgumentParser) -> None:
    audit = commands.add_parser(
        "audit", parents=[common], help="attack a cut as a curious server would, and see what it learns"
    )
    add = audit.add_argument
    add("model", metavar="MODEL", help="package.module:name, file.py:name or the name of a torchvision model")
    add("--cut", required=True, metavar="NAME[,NAME...]", help="the cuts to audit, see splitsec cuts")
    add("--head", metavar="NAME", help="a second cut behind each: a U, whose labels stay with the client")
    add("--dataset", metavar="NAME", help="data to audit with: digits, mnist or one of a plugin")
    add("--data-dir", type=Path, metavar="DIR", help="for mnist: the directory above MNIST/raw")
    add("--input", type=Path, metavar="FILE", help="or data of yours: npz with images, perhaps labels")
    add("--weights", type=Path, metavar="FILE", help="safetensors with the model's weights (trained here on a half)")
    add("--epochs", type=int, default=10, metavar="N", help="of training on the private half, without weights (10)")
    add("--victims", type=int, default=128, metavar="N", help="private images to attack (128)")
    add(
        "--attacks",
        metavar="NAME[,NAME]",
        help="inverse, optimise, hijack, labels, members, encrypted, or of a plugin",
    )
    add("--thorough", action="store_true", help="longer attacks: three times as long, and better at deep cuts")
    add("--activation-clip", type=float, default=0.0, metavar="C", help="as in splitsec demo (none)")
    add("--activation-noise", type=float, default=0.0, metavar="S", help="as in splitsec demo (0)")
    add("--seed", type=int, default=0, help="which rows are private, and the first weights (0)")
    add("--html", type=Path, metavar="FILE", help="write a page with figures and example images")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    audit.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> None:
    check_writable(options.json)
    check_writable(options.html)
    if options.epochs < 0 or options.victims < 1:
        raise ConfigError("--epochs takes whole numbers from 0 on, --victims from 1 on")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from splitsec.apps.audit import audit
    from splitsec.apps.audit_rows import AuditRun
    from splitsec.cli.progress import in_words, shown_progress
    from splitsec.privacy.audit.page import page

    settings = {name: value for name, value in vars(options).items() if name in AuditRun.__dataclass_fields__}
    settings |= {
        "cuts": tuple(options.cut.split(",")),
        "attacks": tuple(options.attacks.split(",")) if options.attacks else None,
    }
    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 120

    def estimate(seconds: float, thorough: float) -> None:
        more = "" if options.thorough else f"; --thorough would take {in_words(thorough)}"
        said.print(f"audit: {in_words(seconds)} on this machine{more}", soft_wrap=True)

    said = Console(stderr=True, emoji=False, markup=False, highlight=False)
    with terminated_like_interrupted(), shown_progress("audit", said) as report:
        result = audit(AuditRun(**settings), report=report, on_estimate=estimate)
    for chapter in result.chapters:
        table = Table(title=chapter.title, title_justify="left")
        for heading in ("attack", "measure", "found", "guess", ""):
            table.add_column(heading, justify="left" if heading in ("measure", "") or not table.columns else "right")
        for row in chapter.rows:
            told = Text("leaks", "red") if row.leaks else Text("" if row.leaks is None else "no better", "green")
            table.add_row(row.attack, row.measure, f"{row.value:.4f}", f"{row.baseline:.4f}", told)
        console.print(table)
        if chapter.note:
            console.print(chapter.note, soft_wrap=True)
    if options.html is not None:
        introduction = (
            f"{result.rows_private} private rows, {result.rows_attacker} of the attacker's own, "
            f"{'thorough' if options.thorough else 'quick'} attacks. Red rows: better than a guess; green rows: not."
        )
        with whole_file(options.html) as partial:
            partial.write_text(page(f"Audit of {result.model}", introduction, result.chapters), encoding="utf-8")
        console.print(f"page with example images: {options.html}")
    content = [
        {"title": chapter.title, "note": chapter.note, "rows": [asdict(row) for row in chapter.rows]}
        for chapter in result.chapters
    ]
    write_json(options.json, content)


def _pate(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from rich.console import Console
    from rich.table import Table

    from splitsec.apps.pate import PateRun, run_pate
    from splitsec.cli.progress import shown_status

    console = Console(emoji=False, markup=False)
    settings = {name: value for name, value in vars(options).items() if name in PateRun.__dataclass_fields__}
    with terminated_like_interrupted(), shown_status("pate") as report:
        result = run_pate(PateRun(**settings), report=report)
    table = Table(title=f"{result.dataset}: {result.teachers} teachers, {result.queries} queries")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("accuracy of a teacher, mean", f"{result.teacher_accuracy:.2%}")
    table.add_row("queries answered", f"{result.answered} of {result.queries}")
    table.add_row("right labels among the answers", f"{result.label_accuracy:.2%}")
    table.add_row("accuracy of the student", f"{result.student_accuracy:.2%}")
    table.add_row(f"epsilon at delta {result.delta:g}, from these votes", f"{result.epsilon:.3f}")
    table.add_row("epsilon whatever the votes", f"{result.epsilon_data_independent:.3f}")
    table.add_row("encrypted votes: rounds", str(result.rounds))
    table.add_row("encrypted votes: megabytes", f"{result.bytes / 1e6:.2f}")
    table.add_row("encrypted votes: seconds", f"{result.voting_seconds:.2f}")
    table.add_row("whole run, seconds", f"{result.seconds:.1f}")
    console.print(table)
    console.print(
        "The first epsilon depends on the votes, which only this demonstration may look at: it is not to be published "
        "as it stands. The second holds for any votes.",
        soft_wrap=True,
    )
    write_json(options.json, asdict(result))


def _ledger(options: argparse.Namespace) -> None:
    check_writable(options.json)
    check_writable(options.plot)
    import msgspec
    from rich.console import Console

    from splitsec.advisor.plot import check_format
    from splitsec.privacy.history import shared_runs
    from splitsec.privacy.ledger import find_ledgers, plot_ledgers

    if options.plot is not None:
        check_format(options.plot)
    if not options.run_directory.exists():
        raise ConfigError(f"there is no {options.run_directory}")
    ledgers = find_ledgers(options.run_directory)
    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 130
    for ledger in ledgers:
        _show_ledger(console, ledger)
    for group in shared_runs(options.run_directory):
        _show_shared(console, group)
    if options.plot is not None:
        plot_ledgers(ledgers, options.plot)
        console.print(f"epsilon against accuracy: {options.plot}")
    write_json(
        options.json,
        [
            {
                **msgspec.to_builtins(ledger),
                "spent": ledger.spent,
                "epsilon_against_another_client": ledger.against_another_client(),
            }
            for ledger in ledgers
        ],
    )


def _show_ledger(console: Console, ledger: Ledger) -> None:
    from rich.table import Table

    budget = f", budget epsilon {ledger.budget:g}" if ledger.budget else ""
    title = f"{ledger.client}, run {ledger.run[:8]}{budget} at delta {ledger.delta:g} ({ledger.accountant})"
    table = Table(title=title)
    for heading in ("mechanism", "protects", "noise", "rate", "steps", "epsilon", "with"):
        table.add_column(heading, justify="right" if heading in ("noise", "rate", "steps", "epsilon") else "left")
    for entry in ledger.entries:
        table.add_row(
            entry.mechanism,
            entry.covers,
            f"{entry.noise:.3f}" if entry.noise else "none",
            f"{entry.rate:.4g}",
            str(entry.steps),
            "no promise" if entry.epsilon is None else f"{entry.epsilon:.3f}",
            ", ".join(f"{name} {value:.4g}" for name, value in entry.parameters.items()),
        )
    console.print(table)
    against = ledger.against_another_client()
    if against is not None:
        console.print(
            f"Against another client, which knows its own share of the noise: epsilon {against:.3f}.",
            soft_wrap=True,
        )


def _show_shared(console: Console, group: Sequence[Ledger]) -> None:
    """Print what several runs over the same records have spent together."""
    from splitsec.privacy.history import epsilon_of_noisy_activations, epsilon_together

    delta = min(ledger.delta for ledger in group)
    names = ", ".join(ledger.run[:8] for ledger in group)
    costs = {
        "": epsilon_together(group, delta=delta, accountant=group[0].accountant),
        " on noisy activations, against the server,": epsilon_of_noisy_activations(group, delta=delta),
    }
    for what, spent in costs.items():
        if spent:
            console.print(
                f"{group[0].client}: runs {names} share records (or nobody can tell), of which the whole has "
                f"spent{what} epsilon {spent:.3f} at delta {delta:g}.",
                soft_wrap=True,
            )
