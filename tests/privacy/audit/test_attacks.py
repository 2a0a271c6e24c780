"""The attacks find what is there, and nothing where there is nothing."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from splitsec import SplitModel
from splitsec.errors import ConfigError, CutError
from splitsec.launch import audit_run
from splitsec.launch.audit_run import AuditRun, Effort
from splitsec.launch.auditing import audit
from splitsec.launch.stages import Progress
from splitsec.models import digits_cnn
from splitsec.mpc import pair
from splitsec.privacy.audit import encrypted
from splitsec.privacy.audit.encrypted import server_view
from splitsec.privacy.audit.hijacking import hijack
from splitsec.privacy.audit.inversion import invert, optimise, ridge_error
from splitsec.privacy.audit.labels import gradients_at, infer_labels
from splitsec.privacy.audit.membership import infer_members
from splitsec.privacy.audit.metrics import auc, mse, ssim, true_positives_at
from splitsec.privacy.audit.page import Chapter, Row, Strip, page
from splitsec.threads import one_thread
from splitsec.training.data import load_dataset


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return load_dataset("digits", None, 0).train_images


def _front(cut: str) -> tuple[SplitModel, nn.Module]:
    torch.manual_seed(0)
    split = SplitModel(digits_cnn(), cut).eval()
    return split, split.front


def test_measures_of_images(digits: torch.Tensor) -> None:
    images = digits[:40]
    assert ssim(images, images) == pytest.approx(1.0, abs=1e-5)
    assert mse(images, images) == 0
    noisy = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert ssim(images, noisy) < 0.9
    assert ssim(images, images.flip(-1)) < ssim(images, noisy)
    large = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(large, large * 0.99) > 0.99


def test_measures_of_scores() -> None:
    truth = torch.tensor([True] * 50 + [False] * 50)
    assert auc(truth.double(), truth) == 1
    assert auc(torch.zeros(100), truth) == 0.5
    assert true_positives_at(truth.double(), truth, 0.01) == 1
    assert true_positives_at(-truth.double(), truth, 0.01) == 0


def test_a_shallow_cut_is_inverted_and_noise_is_not(digits: torch.Tensor) -> None:
    split, front = _front("conv1")
    victims, public = digits[:60], digits[700:1300]
    with torch.no_grad():
        seen, sent = front(public), front(victims)
    guess = public.mean(0, keepdim=True).expand_as(victims)
    made = invert(seen, public, steps=200)(sent)
    assert mse(victims, made) < 0.2 * mse(victims, guess)
    assert ssim(victims, made) > 0.85 > ssim(victims, guess)
    # The control: activations that have nothing to do with the images.
    apart = invert(torch.randn_like(seen), public, steps=100)(torch.randn_like(sent))
    assert mse(victims, apart) > 0.9 * mse(victims, guess)
    best = optimise(front, sent[:8], guess[:8], low=0.0, high=1.0, steps=150)
    assert mse(victims[:8], best) < 0.1 * mse(victims[:8], guess[:8])
    assert ridge_error(seen[:400].flatten(1), public[:400]) < 0.05
    assert ridge_error(torch.randn(400, 20), public[:400]) > 0.9
    assert split.cut == "conv1"


def test_hijacking_makes_images_from_its_own_gradients(digits: torch.Tensor) -> None:
    _, front = _front("conv1")
    before = {name: one.clone() for name, one in front.state_dict().items()}
    made = hijack(front, digits[:100], digits[700:1100], steps=20)
    assert made.shape == digits[:100].shape
    assert all(torch.equal(one, before[name]) for name, one in front.state_dict().items())


def test_labels_show_in_the_direction_of_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = nn.Linear(16, 4)
    outputs, labels = torch.randn(300, 16, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    area, right, most = infer_labels(gradients_at(head, outputs, labels), labels)
    assert area > 0.95
    assert right > 0.9 > most
    area, right, most = infer_labels(torch.randn(300, 16, generator=generator), labels)
    assert abs(area - 0.5) < 0.1
    assert right < most + 0.1


def test_members_of_an_overfitted_model_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images, labels = torch.randn(120, 10, generator=generator), torch.randint(0, 2, (120,), generator=generator)
    model = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 2))
    inside, outside = (images[:60], labels[:60]), (images[60:], labels[60:])
    assert abs(infer_members(model, inside, outside)[0] - 0.5) < 0.12
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:60]), labels[:60]).backward()
        optimizer.step()
    assert infer_members(model, inside, outside)[0] > 0.75


def _against_the_server(digits: torch.Tensor) -> tuple[float, float]:
    """Errors of the inverse network on encrypted predictions, and of a guess."""
    split, front = _front("relu3")
    victims, public = digits[:40], digits[700:900]
    with torch.no_grad():
        activations = front(torch.cat([public, victims]))
    seen = server_view(split.tail, activations)
    made = invert(seen[:200], public, steps=300)(seen[200:])
    return mse(victims, made), mse(victims, public.mean(0, keepdim=True).expand_as(victims))


def test_encrypted_predictions_give_the_server_no_better_than_a_guess(digits: torch.Tensor) -> None:
    attack, guess = _against_the_server(digits)
    assert attack > 0.97 * guess


def test_control_without_masks_the_same_attack_works(digits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = pair._Watched.take
    monkeypatch.setattr(
        pair._Watched, "take", lambda self, wanted: [torch.zeros_like(part) for part in taken(self, wanted)]
    )
    # As large as words are read, since a plain activation is in their low bits.
    monkeypatch.setattr(
        encrypted, "numbers_of", lambda seen, most: torch.stack(list(seen))[:, :most].double().mul(2.0**-16).float()
    )
    attack, guess = _against_the_server(digits)
    assert attack < 0.6 * guess


def test_the_page_shows_figures_and_images() -> None:
    rows = (Row("inverse <network>", "error", 0.5, 0.7, True), Row("none", "x", 1.0, 1.0, None))
    made = page("An audit", "of a & b", [Chapter("cut", rows, (Strip("images", torch.rand(3, 1, 8, 8)),), "a note")])
    assert made.startswith("<!doctype html>")
    assert "inverse &lt;network&gt;" in made
    assert "of a &amp; b" in made
    assert 'class="leaks"' in made
    assert "data:image/png;base64,iVBOR" in made
    assert "a note" in made


def test_every_stage_of_an_audit_is_told_and_its_time_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Effort(inverse=30, optimise=20, hijack=10, encrypted_rows=30, encrypted=20)
    monkeypatch.setattr(audit_run, "QUICK", small)
    told: list[Progress] = []
    estimates: list[float] = []
    run = AuditRun("splitsec.models:digits_cnn", ("pool", "relu3"), dataset="digits", epochs=2, victims=8)
    audit(run, told.append, on_estimate=lambda *both: estimates.extend(both))
    last = {one.stage.title: one for one in told}
    assert len(last) == 11
    # Each begins, comes to its end, and has an estimate.
    assert all(one.done == one.stage.steps > 0 for one in last.values())
    assert all(one.stage.seconds > 0 for one in list(last.values())[1:])
    quick, thorough = estimates
    assert 0 < quick < thorough / 5


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
    found = audit(run)
    measures = {(row.attack, row.measure): row for chapter in found.chapters for row in chapter.rows}
    assert measures["labels by gradient direction", "right labels"].leaks
    assert not measures["membership by loss", "area under the ROC curve"].leaks
    assert (found.rows_private, found.rows_attacker) == (718, 719)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attacks": ("magic",)}, "no attack 'magic'"),
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
