"""Clients that hold columns of the same people, over real sockets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from support.parties_in_threads import World, world
from support.tensors import all_of
from torch import nn
from torch.nn import functional as F

from splitsec import Query, Storage
from splitsec.cut.joined import CUT, VerticalModel
from splitsec.data.columns import Columns, split_aligned
from splitsec.data.loaders import Loader
from splitsec.data.standardisation import Scaling
from splitsec.errors import ConfigError, MessageError, PartyTimeoutError, RandomnessError, RefusedError
from splitsec.parties.columns_client import ColumnsClient
from splitsec.prediction.joint_inputs import Gathered, Masks, mask
from splitsec.prediction.messages import Ask
from splitsec.training.messages import Aligned, Points
from splitsec.transport import NO_TENSORS

ROWS = 60


def _model(join: str) -> VerticalModel:
    torch.manual_seed(0)
    fronts = {
        "client-1": nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        "client-2": nn.Sequential(nn.Linear(2, 4), nn.ReLU()),
    }
    tail = nn.Sequential(nn.Linear(8 if join == "concat" else 4, 5), nn.ReLU(), nn.Linear(5, 2))
    return VerticalModel(fronts, tail, join=join)  # type: ignore[arg-type]


def _data() -> tuple[Columns, Columns]:
    """Each client has 50 of 60 people, in an order of its own; 40 they have in common."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS, 5, generator=generator)
    labels = ((values[:, 0] + values[:, 3]) > 0).long()
    ids = [f"id{number:03d}" for number in range(ROWS)]
    found = []
    for first, last, columns in ((0, 50, slice(0, 3)), (10, 60, slice(3, 5))):
        rows = (torch.randperm(last - first, generator=generator) + first).tolist()
        held = labels[rows] if first == 0 else None
        found.append(Columns(tuple(ids[row] for row in rows), values[rows][:, columns], held))
    return found[0], found[1]


def _world(directory: Path, join: str = "concat", **options: Any) -> Any:
    model = _model(join)
    settings = {
        "aggregation": "none",
        "join": join,
        "row_order_seed": 4,
        "held_out": 0.25,
        **options.pop("settings", {}),
    }
    made = world(directory, cut=CUT, tail=model.tail, settings=settings, **options)
    return model, made


def _client(here: World, name: str, model: VerticalModel) -> ColumnsClient:
    return here.client(name, model.fronts[name], cut=CUT, kind=ColumnsClient)  # type: ignore[return-value]


def _plain(model: VerticalModel, epochs: int) -> tuple[VerticalModel, list[torch.Tensor], torch.Tensor]:
    """The same training of the whole model on joined columns, and the aligned columns."""
    one, two = _data()
    common = sorted(set(one.ids) & set(two.ids))
    train, test = split_aligned(len(common), 0.25, 4)
    order = [common[row] for row in train + test]
    aligned = [part.take([part.ids.index(name) for name in order]).standardised(len(train)) for part in (one, two)]
    labels = aligned[0].labels
    assert labels is not None
    loader = Loader(aligned[0].values[: len(train)], labels[: len(train)], batch_size=8, seed=4)
    groups = [model.fronts["client-1"], model.fronts["client-2"], model.tail]
    optimizers = [torch.optim.Adam(group.parameters(), lr=2e-3) for group in groups]
    for index in range(epochs * loader.per_epoch):
        rows = loader.rows(index)
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(*(part.values[rows] for part in aligned)), labels[rows]).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model, [part.values for part in aligned], labels


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_columns_are_trained_on_and_predicted_together(
    join: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = _world(tmp_path, join, epochs=3)
    with made as here:

        def asks() -> Any:
            with _client(here, "client-1", model) as client:
                client.train(_data()[0])
                assert client.training_rows == 30
                rows = list(range(30, 40))
                single = client.predict_rows(rows[:3])
                batch = client.predict_rows(rows, Query(batch_size=4))
                with pytest.raises(MessageError, match="from 0 to 39"):
                    client.predict_rows([40])
                client.leave()
            return single, batch, client.columns

        def contributes() -> Any:
            with _client(here, "client-2", model) as client:
                client.train(_data()[1])
                count = client.contribute()
                client.leave()
            return count, client.columns

        first, second = here.together(asks, contributes)
        here.threads[1].join(20)
        assert not here.threads[1].is_alive()
    single, batch, mine = first
    count, others = second
    assert count == 3 + 3
    assert mine.ids == others.ids
    plain, values, _ = _plain(_model(join), 3)
    torch.testing.assert_close(mine.values, values[0])
    with torch.no_grad():
        expected = plain.eval()(*(value[30:40] for value in values))
    torch.testing.assert_close(batch.logits, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(single.logits, expected[:3], atol=2e-3, rtol=0)


def _shares_at_the_server(directory: Path, monkeypatch: pytest.MonkeyPatch, *, masked: bool) -> torch.Tensor:
    """What a worker is given of client 2's activations: watched where it is sent."""
    from splitsec.parties import columns_client as columns

    given: list[torch.Tensor] = []
    put = columns.encode

    if not masked:
        monkeypatch.setattr(columns, "mask", lambda *_a: torch.zeros(_a[-1], dtype=torch.int64))
    send = columns.Link.send

    def watched(self: Any, body: Any, tensors: Any = NO_TENSORS) -> None:
        if type(body).__name__ == "Contribution":
            given.append(tensors["masked"])
        send(self, body, tensors)

    monkeypatch.setattr(columns.Link, "send", watched)
    assert put is columns.encode
    model, made = _world(directory, epochs=1)
    with made as here:

        def asks() -> None:
            with _client(here, "client-1", model) as client:
                client.train(_data()[0])
                client.predict_rows(list(range(40)) * 4, Query(batch_size=40))
                client.leave()

        def contributes() -> None:
            with _client(here, "client-2", model) as client:
                client.train(_data()[1])
                client.contribute()
                client.leave()

        assert here.together(asks, contributes) == [None, None]
    return torch.cat(given)


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_server_gets_of_the_others_is_uniform(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is the same without the mask."""
    given = _shares_at_the_server(tmp_path, monkeypatch, masked=masked)
    counts = torch.bincount(given.contiguous().view(torch.uint8).flatten().long(), minlength=256).numpy()
    assert (stats.chisquare(counts).pvalue > 1e-6) == masked


def test_ids_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitsec.training.server.run import ServerRun

    seen: list[bytes] = []
    take = ServerRun.handle

    def watched(self: ServerRun, name: str, body: Any, tensors: Any, *, now: float) -> Any:
        seen.append(repr(body).encode())
        seen.extend(bytes(one.contiguous().view(torch.uint8).flatten().tolist()) for one in all_of(tensors))
        return take(self, name, body, tensors, now=now)

    monkeypatch.setattr(ServerRun, "handle", watched)
    model, made = _world(tmp_path, epochs=1)
    with made as here:

        def train(name: str, part: Columns) -> Any:
            def run() -> None:
                with _client(here, name, model) as client:
                    client.train(part)
                    client.leave()

            return run

        here.together(*(train(f"client-{index}", part) for index, part in enumerate(_data(), 1)))
    assert len(seen) > 10
    # The control: the words of the messages are there.
    assert any(b"Points" in one for one in seen)
    assert not any(b"id0" in one for one in seen)


def test_unaligned_ids_end_the_run_with_a_reason(tmp_path: Path) -> None:
    model, made = _world(tmp_path)
    with made as here:

        def train(name: str, part: Columns) -> Any:
            def run() -> None:
                with _client(here, name, model) as client:
                    client.train(part)

            return run

        one, two = _data()
        strange = Columns(tuple(f"x{number}" for number in range(50)), two.values)
        errors = here.together(train("client-1", one), train("client-2", strange))
    assert any(
        isinstance(error, ConfigError) and "no id of this client's 50 rows is known" in str(error) for error in errors
    )
    assert all(isinstance(error, (ConfigError, PartyTimeoutError)) for error in errors)


@pytest.mark.parametrize(("labels", "reason"), [(0, "no client has labels"), (2, "both have labels")])
def test_one_client_holds_the_labels(labels: int, reason: str, tmp_path: Path) -> None:
    """Said before any row is aligned: to all where nobody has labels, else to the second that has some."""
    model, made = _world(tmp_path, timeout=3.0)
    one, two = _data()
    parts = [Columns(one.ids, one.values), two]
    if labels == 2:
        parts = [one, Columns(two.ids, two.values, torch.zeros(50, dtype=torch.int64))]
    with made as here:

        def train(name: str, part: Columns) -> Any:
            def run() -> None:
                with _client(here, name, model) as client:
                    client.train(part)
                    raise AssertionError("trained")

            return run

        errors = here.together(*(train(f"client-{index}", part) for index, part in enumerate(parts, 1)))
    told = [error for error in errors if isinstance(error, (ConfigError, RefusedError)) and reason in str(error)]
    assert len(told) == (2 if labels == 0 else 1), errors


def test_what_is_not_due_is_refused(tmp_path: Path) -> None:
    model, made = _world(tmp_path)
    with made as here, _client(here, "client-1", model) as client:
        for body, tensors in (
            (Points("client-1"), {"points": torch.zeros(2, 32, dtype=torch.uint8)}),
            (Aligned(3), {}),
        ):
            with pytest.raises(MessageError, match="was not due"):
                client._connection.server.request(body, tensors)
        with pytest.raises(RefusedError, match="has no session"):
            client._connection.server.request(Ask("0" * 32, 0, (1,)))
        with pytest.raises(ConfigError, match="no rows are aligned"):
            client.predict_rows([0])


def test_a_mask_serves_once() -> None:
    masks = Masks()
    for session, query in (("a", 0), ("a", 1), ("b", 0), ("a", 5)):
        masks.check(session, query)
    for session, query in (("a", 5), ("a", 2), ("b", 0)):
        with pytest.raises(RandomnessError, match="each mask serves once"):
            masks.check(session, query)
    seed = b"x" * 16
    found = [mask(seed, s, q, c, (4,)) for s, q, c in (("a", 0, "c"), ("b", 0, "c"), ("a", 1, "c"), ("a", 0, "d"))]
    assert all(not torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])
    assert Gathered.__doc__


@pytest.mark.parametrize("asks", ["client-1", "client-2"])
def test_who_has_labels_alone_takes_part(asks: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fronts = {"client-1": nn.Identity(), "client-2": nn.Sequential(nn.Linear(2, 4), nn.ReLU())}
    model = VerticalModel(fronts, nn.Linear(4, 2))
    one, two = _data()
    parts = {"client-1": Columns(one.ids, torch.zeros(50, 0), one.labels), "client-2": two}
    settings = {"aggregation": "none", "join": "concat", "row_order_seed": 4, "held_out": 0.25}
    with world(tmp_path, cut=CUT, tail=model.tail, settings=settings, epochs=2) as here:

        def run(name: str) -> Any:
            def action() -> Any:
                with _client(here, name, model) as client:
                    client.train(parts[name])
                    predictions = None
                    if name == asks:
                        predictions = client.predict_rows(range(30, 40), Query(batch_size=4))
                    else:
                        client.contribute()
                    client.leave()
                    return predictions, client.columns

            return action

        results = here.together(*(run(name) for name in parts))
    assert not [result for result in results if isinstance(result, BaseException)], results
    predictions = next(result[0] for result in results if result[0] is not None)
    columns = results[1][1]
    assert predictions.ids == columns.ids[30:]
    with torch.no_grad():
        plain = here.split.tail(model.fronts["client-2"](columns.values[30:]))
    torch.testing.assert_close(predictions.logits, plain, atol=2e-3, rtol=0)


def test_a_run_does_not_go_on_with_columns_that_are_scaled_otherwise(tmp_path: Path) -> None:
    """The control: with the same scaling it does."""

    def run(number: int, epochs: int, scaling: Scaling) -> list[Any]:
        options = {
            "checkpoints": tmp_path / "server",
            "dealer_options": {"storage": Storage(checkpoints=tmp_path / "dealer")},
        }
        model, made = _world(tmp_path / f"keys-{number}", epochs=epochs, timeout=2.0, **options)
        with made as here:

            def train(name: str, part: Columns) -> Any:
                def action() -> None:
                    with _client(here, name, model) as client:
                        client.train(
                            replace(part, scaling=scaling), seed=0, storage=Storage(checkpoints=tmp_path / name)
                        )

                return action

            return here.together(*(train(f"client-{index}", part) for index, part in enumerate(_data(), 1)))

    assert run(0, 1, Scaling()) == [None, None]
    errors = run(1, 2, Scaling(standardise=False))
    assert all(
        isinstance(error, ConfigError) and "something else is done to its columns" in str(error) for error in errors
    )
    assert run(2, 2, Scaling()) == [None, None]
