"""The walks of the page on architecture are those of the code: tensors are followed through a run."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.follow import PACKAGE, Follower, Visit, following
from support.parties_in_threads import part, world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "architecture.md"
Hop = tuple[str, str]
# Files that the definition of a hop leaves out: the codec is inside of sending and receiving.
CODEC = {"transport/codec.py", "transport/tensor_specs.py"}
# What only checks, counts or reports.
CHECKS = {
    "Coder.rows_of",
    "EpochBook.add",
    "LabelledSteps._check_batch",
    "Participant.note",
    "TailTrainer.check",
    "check_dtypes",
    "check_range",
    "mark_of",
    "values_digest",
}
# Two hops of one file with its caller's return between them.
SAME_ROOM = {"ClientAggregation.load", "ServerRun._said"}


def _walk(title: str) -> list[Hop]:
    section = PAGE.read_text().split(f"\n### {title}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", section, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    return [(file, function) for _, file, function in rows]


WALKS = ["An activation and its gradient", "A client's update, through aggregation", "A setting"]
WALKS += ["Opening a prediction session"]


def _functions(file: str) -> set[str]:
    """Return the functions and methods of a file by their qualified names."""
    names = set()
    for node in ast.parse(Path(PACKAGE, file).read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("title", WALKS)
def test_every_function_of_a_walk_exists(title: str) -> None:
    hops = _walk(title)
    assert len(hops) >= 5
    for file, function in hops:
        assert function in _functions(file), f"{file} has no {function}"


@pytest.mark.parametrize("title", WALKS)
def test_the_number_of_hops_that_is_said_is_that_of_the_table(title: str) -> None:
    before = PAGE.read_text().split(f"\n### {title}\n")[1].split("\n|")[0]
    said = re.findall(r"(\d+) (?:hops|of the sum)", before)
    assert sum(map(int, said)) == len(_walk(title))


def _masked(upload: torch.Tensor) -> torch.Tensor:
    return upload


FOLLOWED: dict[str, Callable[[], Follower]] = {
    WALKS[0]: lambda: Follower(
        begin="FrontTrainer.forward",
        derive={"TailTrainer.step": lambda results: results["client-1"].gradient},
        end="FrontTrainer.backward",
        thread="client-1",
        skip=1,
    ),
    WALKS[1]: lambda: Follower(
        begin="ClientAggregation.values",
        derive={"mask_upload": _masked, "MaskBook.open_sum": _masked, "combine": _masked},
        end="Combinable.load",
        thread="client-1",
    ),
}


def _follow(title: str, directory: Path) -> list[Visit]:
    follower = FOLLOWED[title]()
    with following(follower), world(directory, epochs=1) as running:

        def train(name: str, seed: int) -> None:
            with running.client(name) as client:
                client.train(part(seed, 40))
                client.leave()

        threads = [
            threading.Thread(target=train, args=(name, seed), name=name)
            for name, seed in (("client-1", 1), ("client-2", 2))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert follower.done
    return follower.visits


@pytest.mark.parametrize("title", FOLLOWED)
def test_a_tensor_takes_the_hops_of_the_page_and_no_others(title: str, tmp_path: Path) -> None:
    visits, hops = _follow(title, tmp_path), _walk(title)
    seen = iter((visit.file, visit.function) for visit in visits)
    missed = [hop for hop in hops if hop not in seen]
    assert not missed, "the tensor does not come there, or in another order"
    handed_on = {
        (visit.file, visit.function)
        for visit in visits
        if visit.entered and visit.caller != visit.file and visit.file not in CODEC
    }
    untold = {hop for hop in handed_on - set(hops) if hop[1] not in CHECKS | SAME_ROOM}
    assert not untold, "the page leaves hops out"


def test_control_what_the_tensor_does_not_reach_is_not_seen(tmp_path: Path) -> None:
    visits = _follow(WALKS[0], tmp_path)
    entered = {(visit.file, visit.function) for visit in visits if visit.entered}
    # A page that ended before the tail would leave a hop out, and the forward pass of a U is not taken here.
    assert ("training/tail.py", "TailTrainer.step") in entered - set(_walk(WALKS[0])[:9])
    assert ("training/tail.py", "TailTrainer.forward") not in entered
