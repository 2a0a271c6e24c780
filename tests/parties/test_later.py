"""A trained model of columns predicts people who come later, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import World, world
from torch import nn

from splitsec import Query
from splitsec.cut import Origin, origin_of, set_origin
from splitsec.cut.joined import CUT, VerticalModel
from splitsec.data.columns import Columns
from splitsec.data.standardisation import Scaling, Standardisation
from splitsec.errors import ConfigError, RefusedError
from splitsec.parties.columns_client import ColumnsClient

NAMES = ("client-1", "client-2")


def _model() -> VerticalModel:
    torch.manual_seed(0)
    fronts = {
        "client-1": nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        "client-2": nn.Sequential(nn.Linear(2, 4), nn.ReLU()),
    }
    return VerticalModel(fronts, nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))).eval()


def _people(count: int, *, first: int, shift: float = 0.0) -> dict[str, Columns]:
    """Columns far from mean 0 and spread 1; nobody has labels."""
    generator = torch.Generator().manual_seed(first)
    values = torch.randn(count, 5, generator=generator) * torch.tensor([1.0, 5, 0.2, 30, 2]) + 10 + shift
    found = {}
    for name, columns in zip(NAMES, (slice(0, 3), slice(3, 5)), strict=True):
        rows = torch.randperm(count, generator=generator).tolist()
        found[name] = Columns(tuple(f"id{first + row:03d}" for row in rows), values[rows][:, columns])
    return found


def _given(columns: Columns) -> Standardisation:
    return Standardisation.of(columns.values, columns.names)


def _trained(parts: dict[str, Columns]) -> dict[str, Standardisation]:
    return {name: _given(part) for name, part in parts.items()}


def _client(here: World, name: str, model: VerticalModel, asks: bool | None = None) -> ColumnsClient:
    # As if a run had trained them together.
    set_origin(model.fronts[name], replace(origin_of(here.split.tail), digest=""))
    client = here.client(name, model.fronts[name], cut=CUT, kind=ColumnsClient)
    assert isinstance(client, ColumnsClient)
    client.asks = asks
    return client


def _later(directory: Path, **options: Any) -> Any:
    model = _model()
    return model, world(
        directory, cut=CUT, tail=model.tail, settings={"aggregation": "none", "join": "concat"}, epochs=0, **options
    )


def _asking(here: World, model: VerticalModel, columns: Columns, **options: Any) -> Callable[[], Any]:
    def run() -> Any:
        with _client(here, "client-1", model, True) as client:
            client.align(columns)
            predictions = client.predict_rows(range(len(client.columns.ids)), Query(batch_size=8, **options))
            client.leave()
            return predictions

    return run


def _giving(here: World, model: VerticalModel, columns: Columns) -> Callable[[], Any]:
    def run() -> Any:
        with _client(here, "client-2", model, False) as client:
            client.align(columns)
            count = client.contribute()
            client.leave()
            return count

    return run


def _predicted(directory: Path, parts: dict[str, Columns], **options: Any) -> Any:
    model, made = _later(directory)
    with made as here:
        predictions, count = here.together(
            _asking(here, model, parts["client-1"], **options), _giving(here, model, parts["client-2"])
        )
        here.threads[1].join(20)
        assert not here.threads[1].is_alive()
        assert not here.server_error
    assert not isinstance(predictions, BaseException), predictions
    assert count == -(-len(predictions.ids) // 8)
    return predictions


def _plain(parts: dict[str, Columns], scale: dict[str, Standardisation], ids: tuple[str, ...]) -> torch.Tensor:
    """The whole model in plain, with each person's columns found by the id of the result."""
    columns = []
    for name in NAMES:
        part = parts[name].take([parts[name].ids.index(text) for text in ids])
        columns.append(scale[name].apply(part.values))
    with torch.no_grad():
        result: torch.Tensor = _model()(*columns)
    return result


def test_people_who_come_later_are_predicted_as_by_the_plain_model(tmp_path: Path) -> None:
    """With the mean and spread of the people that it was trained on. The control: with those of the new people, who are
    otherwise, results are others."""
    scale = _trained(_people(80, first=0))
    later = _people(12, first=500, shift=20.0)
    given = {name: replace(part, scaling=Scaling(given=scale[name])) for name, part in later.items()}
    found = _predicted(tmp_path, given)
    assert found.ids == tuple(f"id{number}" for number in range(500, 512))
    torch.testing.assert_close(found.logits, _plain(later, scale, found.ids), atol=2e-3, rtol=0)
    own = _plain(later, _trained(later), found.ids)
    assert (found.logits - own).abs().max() > 0.1


@pytest.mark.parametrize("options", [{"reveal": "label"}, {"checked": True}, {"comparison": "dcf"}])
def test_how_is_predicted_is_as_asked_for(options: dict[str, Any], tmp_path: Path) -> None:
    scale = _trained(_people(80, first=0))
    later = _people(10, first=500)
    parts = {name: replace(part, scaling=Scaling(given=scale[name])) for name, part in later.items()}
    found = _predicted(tmp_path, parts, **options)
    plain = _plain(later, scale, found.ids)
    assert torch.equal(found.labels, plain.argmax(1))
    assert (found.logits is None) == ("reveal" in options)


@pytest.mark.parametrize(
    ("asks", "reason"),
    [
        ((False, False), "no client asks for predictions"),
        ((True, True), "both ask for predictions, and one client can"),
    ],
)
def test_one_client_asks(asks: tuple[bool, bool], reason: str, tmp_path: Path) -> None:
    parts = _people(10, first=0)
    parts = {name: replace(part, scaling=Scaling(given=_given(part))) for name, part in parts.items()}
    model, made = _later(tmp_path, timeout=2.0)
    with made as here:

        def run(name: str, asks: bool) -> Callable[[], Any]:
            def action() -> None:
                with _client(here, name, model, asks) as client:
                    client.align(parts[name])
                    raise AssertionError("aligned")

            return action

        errors = here.together(*(run(name, asking) for name, asking in zip(NAMES, asks, strict=True)))
    told = [error for error in errors if isinstance(error, (ConfigError, RefusedError)) and reason in str(error)]
    assert len(told) == (1 if all(asks) else 2), errors


def test_what_was_never_trained_does_not_predict(tmp_path: Path) -> None:
    model, made = _later(tmp_path, timeout=2.0)
    with (
        made as here,
        _client(here, "client-1", model) as client,
        pytest.raises(
            RefusedError, match="the front of client-1 is not trained: give it weights = 'front.safetensors'"
        ),
    ):
        client.align(_people(10, first=0)["client-1"])


def test_who_does_not_train_is_no_part_of_training(tmp_path: Path) -> None:
    model = _model()
    part = _people(10, first=0)["client-1"]
    with (
        world(tmp_path, cut=CUT, tail=model.tail, settings={"aggregation": "none", "join": "concat"}, epochs=3) as here,
        _client(here, "client-1", model) as client,
        pytest.raises(RefusedError, match=r"client-1 is there for predictions alone .* trains 3 epochs"),
    ):
        client.align(replace(part, scaling=Scaling(given=_given(part))))


def test_other_columns_than_the_front_was_trained_with_are_named(tmp_path: Path) -> None:
    model, made = _later(tmp_path, timeout=2.0)
    part = _people(10, first=0)["client-1"]
    scale = Standardisation.of(part.values, ("age", "height", "weight"))
    with (
        made as here,
        _client(here, "client-1", model) as client,
        pytest.raises(ConfigError, match="trained with the columns 'age', 'height', 'weight'; this data lacks"),
    ):
        client.align(replace(part, scaling=Scaling(given=scale)))


def test_a_front_of_another_run_is_refused_before_rows_are_aligned(tmp_path: Path) -> None:
    model, made = _later(tmp_path, timeout=2.0)
    part = _people(10, first=0)["client-1"]
    with made as here, _client(here, "client-1", model) as client:
        set_origin(client.front, Origin(mark="0" * 32, run="1" * 32, rounds=3))
        with pytest.raises(RefusedError, match="does not belong to the server's tail: the front is of run 11111111"):
            client.align(replace(part, scaling=Scaling(given=_given(part))))
