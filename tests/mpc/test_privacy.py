"""What each party receives does not depend on the secrets; each test has a control in which it does, and fails."""

from typing import Any

import pytest
import torch
from scipy import stats
from support.encrypted_tail import compiled
from support.two_party import Recorder, Unmasked, run_both
from torch import nn

from splitsec.cut import trace
from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.program.compile import encode_weights
from splitsec.mpc.program.execute import run_program

RUNS = 40
TAIL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)).eval()


def _received(
    kind: type[Recorder], x: torch.Tensor, tail: nn.Module, rank: int, *, opened: bool = False, **options: Any
) -> torch.Tensor:
    program, real = compiled(trace(tail), tuple(x.shape), **options)
    weights = encode_weights(program, real)

    def protocol(context: Context) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(program, context, activation=x if client else None, weights=None if client else weights)

    rows = []
    for _ in range(RUNS):
        held = {layer: one.weight for layer, one in weights.items()}
        _, sessions = run_both(protocol, kind=kind, weights=held, comparison=program.comparison)
        messages = sessions[rank].opened if opened else sessions[rank].received
        # The last that the client receives are the server's shares of the result and of the checks' counts, which open
        # them: they are meant to.
        meant = 0 if opened or rank == SERVER else 1 + bool(program.checks)
        rows.append(torch.cat([message.flatten() for message in messages[: len(messages) - meant]]))
    return torch.stack(rows)


def _looks_uniform(values: torch.Tensor) -> bool:
    """Bytes of 64-bit masked values against the uniform distribution, and bits of their positions."""
    data = values.contiguous().view(torch.uint8).flatten()
    counts = torch.bincount(data.long(), minlength=256).numpy()
    return bool(stats.chisquare(counts).pvalue > 1e-6)


def _independent(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Every position's values under two inputs come from one distribution (Kolmogorov-Smirnov, Bonferroni)."""
    lowest = min(
        stats.ks_2samp(one[:, index].double().numpy(), other[:, index].double().numpy()).pvalue
        for index in range(one.shape[1])
    )
    return bool(lowest * one.shape[1] > 1e-4)


@pytest.mark.parametrize("rank", [SERVER, CLIENT])
@pytest.mark.parametrize("opened", [False, True])
def test_messages_are_uniform_whatever_the_input(rank: int, opened: bool) -> None:
    for x in (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 7.25)):
        values = _received(Recorder, x, TAIL, rank, opened=opened)
        assert values.shape[1] > 20
        assert _looks_uniform(values)


@pytest.mark.parametrize("rank", [SERVER, CLIENT])
def test_so_they_are_where_a_label_is_revealed_and_ranges_are_checked(rank: int) -> None:
    x = torch.full((1, 1, 4, 4), 7.25)
    for comparison in ("tables", "dcf"):
        for opened in (False, True):
            options = {"opened": opened, "comparison": comparison}
            values = _received(Recorder, x, TAIL, rank, reveal="label", checked=True, **options)
            assert _looks_uniform(values)
    assert not _looks_uniform(_received(Unmasked, x, TAIL, rank, reveal="label", checked=True))


@pytest.mark.parametrize("opened", [False, True])
def test_what_the_server_receives_does_not_depend_on_the_input(opened: bool) -> None:
    inputs = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 7.25)
    assert _independent(*(_received(Recorder, x, TAIL, SERVER, opened=opened) for x in inputs))


def test_what_the_client_receives_does_not_depend_on_the_weights() -> None:
    other = nn.Sequential(*[(type(layer) is nn.Conv2d and nn.Conv2d(1, 2, 3)) or layer for layer in TAIL]).eval()
    with torch.no_grad():
        other[0].weight.fill_(3.0)
    x = torch.ones(1, 1, 4, 4)
    assert _independent(*(_received(Recorder, x, tail, CLIENT) for tail in (TAIL, other)))


def test_control_without_masks_both_tests_fail() -> None:
    inputs = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 7.25)
    values = [_received(Unmasked, x, TAIL, SERVER) for x in inputs]
    assert not _independent(*values)
    assert not _looks_uniform(values[1])


def test_control_a_wrong_weight_mask_shows() -> None:
    other = nn.Sequential(*TAIL).eval()
    plain = _received(Unmasked, torch.ones(1, 1, 4, 4), other, CLIENT)
    with torch.no_grad():
        changed = trace(nn.Sequential(*[type(one)(1, 2, 3) if type(one) is nn.Conv2d else one for one in TAIL])).eval()
    assert not _independent(plain, _received(Unmasked, torch.ones(1, 1, 4, 4), changed, CLIENT))


def _transformer() -> nn.Module:
    """Every protocol of curves, normalising and products: GELU, attention, layer norm, a scale and a constant."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=True)
    return nn.Sequential(nn.GroupNorm(1, 3), layer, nn.BatchNorm1d(3), nn.Hardswish()).eval()


@pytest.mark.parametrize("rank", [SERVER, CLIENT])
def test_so_they_are_in_a_transformer(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.RUNS", 2)
    x = torch.full((1, 3, 4), 2.0) + torch.arange(4)
    tail = _transformer()
    for opened in (False, True):
        assert _looks_uniform(_received(Recorder, x, tail, rank, opened=opened))
    assert not _looks_uniform(_received(Unmasked, x, tail, rank))
