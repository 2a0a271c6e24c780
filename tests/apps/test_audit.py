"""Whole audits, with few steps."""

from __future__ import annotations

import pytest

from splitsec.apps.audit import audit
from splitsec.apps.audit_rows import AuditRun
from splitsec.apps.stages import Progress
from splitsec.errors import ConfigError, CutError
from splitsec.privacy.audit import Steps, encrypted_predictions, hijacking, inverse_network, optimisation


def test_every_stage_of_an_audit_is_told_and_its_time_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        inverse_network: (30, 1500),
        optimisation: (20, 400),
        hijacking: (10, 1500),
        encrypted_predictions: (20, 600),
    }
    for module, (quick, thorough) in few.items():
        monkeypatch.setattr(module, "STEPS", Steps(quick=quick, thorough=thorough))
    monkeypatch.setattr(encrypted_predictions, "ROWS", Steps(quick=30, thorough=400))
    told: list[Progress] = []
    estimates: list[float] = []
    run = AuditRun("splitsec.models:digits_cnn", ("pool", "relu3"), dataset="digits", epochs=2, victims=8)
    result = audit(run, told.append, on_estimate=lambda *both: estimates.extend(both))
    last = {progress.stage.title: progress for progress in told}
    assert len(last) == 11
    # Each begins, comes to its end, and has an estimate.
    assert all(progress.done == progress.stage.steps > 0 for progress in last.values())
    assert all(progress.stage.seconds > 0 for progress in list(last.values())[1:])
    quick_seconds, thorough_seconds = estimates
    assert 0 < quick_seconds < thorough_seconds / 5
    assert [chapter.title.split(",")[0] for chapter in result.chapters] == [
        "The released model",
        "Cut at 'pool'",
        "Cut at 'relu3'",
        "Encrypted prediction",
        "Encrypted prediction",
    ]
    assert [row.attack for row in result.chapters[1].rows[::2]] == [
        "none",
        "inverse network",
        "optimisation",
        "hijacking (breaks the protocol)",
    ]


def test_figures_of_a_seed_are_the_same_whatever_other_attacks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inverse_network, optimisation):
        monkeypatch.setattr(module, "STEPS", Steps(quick=20, thorough=20))

    def figures(*attacks: str) -> list[object]:
        run = AuditRun("splitsec.models:digits_cnn", ("pool",), dataset="digits", epochs=0, victims=8, attacks=attacks)
        return [row for row in audit(run).chapters[0].rows if row.attack in ("none", "optimisation")]

    assert figures("optimise") == figures("optimise", "inverse")
    assert len(figures("optimise")) == 3


def test_an_audit_of_a_u() -> None:
    run = AuditRun(
        "splitsec.models:digits_cnn",
        ("pool",),
        head="fc2",
        dataset="digits",
        epochs=2,
        victims=20,
        attacks=("labels", "members"),
        activation_clip=3.0,
        activation_noise=0.1,
    )
    result = audit(run)
    measures = {(row.attack, row.measure): row for chapter in result.chapters for row in chapter.rows}
    assert measures["labels by gradient direction", "right labels"].leaks
    assert not measures["membership by loss", "area under the ROC curve"].leaks
    assert (result.rows_private, result.rows_attacker) == (718, 719)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attacks": ("magic",)}, "no attack 'magic'; choose one of: "),
        ({"attacks": ("labels",)}, "the attack 'labels' needs a second cut"),
        ({"attacks": ("members",)}, "the attack 'members' needs a model trained here"),
        ({"attacks": ("encrypted",), "head": "fc2"}, "the attack 'encrypted' needs one cut"),
        ({"dataset": None}, "what data"),
        ({"cuts": ("input",)}, "inputs in plain"),
        ({"cuts": ("nowhere",)}, "nowhere"),
        ({"activation_noise": 1.0}, "multiple of their clip"),
    ],
)
def test_audits_that_cannot_be(changed: dict[str, object], said: str) -> None:
    settings: dict[str, object] = {"model": "splitsec.models:digits_cnn", "cuts": ("pool",), "dataset": "digits"}
    with pytest.raises((ConfigError, CutError), match=said):
        audit(AuditRun(**{**settings, **changed, "epochs": 0}))  # type: ignore[arg-type]
