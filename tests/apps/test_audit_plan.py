"""The order of an audit, and its times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.attacked import target_at

from splitsec.apps.audit_plan import best_threads, paces_of, sections_of, stages_of
from splitsec.apps.audit_rows import AuditRun
from splitsec.data.datasets import load_dataset
from splitsec.errors import ConfigError

RUN = AuditRun("model", ("pool", "relu3"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_dataset("digits", None, 0).train_images[:300]


def test_attacks_that_lack_something_are_left_out_and_refused_where_they_are_named(images: torch.Tensor) -> None:
    targets = [target_at(cut, images) for cut in RUN.cuts]
    sections = sections_of(RUN, targets)
    assert [section.scope for section in sections] == ["cut", "cut", "prediction", "prediction"]
    assert [type(attack).__name__ for attack in sections[0].attacks] == ["InverseNetwork", "Optimisation", "Hijacking"]
    with pytest.raises(ConfigError, match="the attack 'members' needs data with labels"):
        sections_of(replace(RUN, attacks=("inverse", "members")), targets)
    # A chapter of a cut stands even where nothing attacks it.
    assert [section.attacks for section in sections_of(replace(RUN, attacks=()), targets)] == [(), ()]


def test_every_stage_has_a_pace_and_stands_in_the_order_of_the_audit(images: torch.Tensor) -> None:
    run = replace(RUN, attacks=("encrypted", "optimise"))
    sections = sections_of(run, [target_at("relu3", images)])
    paces = paces_of(sections)
    stages = stages_of(sections, "thorough", paces)
    assert [(stage.title, stage.steps) for stage in stages] == [
        ("optimisation at 'relu3'", 400),
        ("encrypted predictions at 'relu3'", 158),
        ("inverse network on encrypted predictions at 'relu3'", 600),
    ]
    assert all(0 < stage.seconds < 5 for stage in stages)


def test_threads_are_as_before_afterwards(images: torch.Tensor) -> None:
    before = torch.get_num_threads()
    with best_threads(target_at("pool", images)):
        assert 1 <= torch.get_num_threads() <= before
    assert torch.get_num_threads() == before
