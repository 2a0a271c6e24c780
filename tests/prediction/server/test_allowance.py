"""What clients may ask of a server: how many rows, which answers, on which ports."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import World, world

from splitsec import Client, Query
from splitsec.errors import AddressError, BudgetError, ConfigError, RefusedError
from splitsec.events import Allowed, AnyEvent
from splitsec.parties.predictions import Predictions
from splitsec.prediction.server.allowance import FILE, Meter, PredictionBook
from splitsec.settings.answers import AnswerRules, check_answer_rules


def _world(directory: Path, **options: Any) -> Any:
    directory.mkdir(exist_ok=True)
    return world(directory, epochs=0, stay=True, timeout=30, **options)


def _predict(here: World, name: str, count: int, batch_size: int = 1, **options: Any) -> Predictions:
    with here.client(name, timeout=60, **options) as client:
        return client.predict(torch.rand(count, 4), Query(batch_size=batch_size, ahead=0))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def _had(directory: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((directory / FILE).read_text())
    return found


def test_a_client_gets_its_predictions_and_no_more_over_all_starts_of_the_server(tmp_path: Path) -> None:
    counts, events = tmp_path / "counts", list[AnyEvent]()
    with _world(tmp_path / "1", predictions_per_client=10, counts=counts) as here:
        assert len(_predict(here, "client-1", 4, report=events.append).labels) == 4
        # Whole batches count: three rows are two queries of two.
        assert len(_predict(here, "client-1", 3, batch_size=2, report=events.append).labels) == 3
        assert [event.left for event in events if isinstance(event, Allowed)] == [10, 6]
        with pytest.raises(BudgetError, match=r"server answers 2 more predictions of this client, and these are 3"):
            _predict(here, "client-1", 3)
        assert _had(counts) == {"client-1": 8}
        # Each client has its own.
        _predict(here, "client-2", 1)
    with _world(tmp_path / "2", predictions_per_client=10, counts=counts) as here:
        _predict(here, "client-1", 2)
        with pytest.raises(BudgetError, match=r"^server: client 'client-1' has had its 10 predictions") as caught:
            _predict(here, "client-1", 1)
        assert caught.value.exit_code == 9
        with pytest.raises(BudgetError, match="client 'client-2' has 9 of its 10 predictions left, and asked for 12"):
            _predict(here, "client-2", 12, batch_size=12)
        _predict(here, "client-2", 9)
    assert _had(counts) == {"client-1": 10, "client-2": 10}
    # Control: what remembers is the file.
    (counts / FILE).unlink()
    with _world(tmp_path / "3", predictions_per_client=10, counts=counts) as here:
        _predict(here, "client-1", 10)


def test_sessions_at_the_same_time_share_the_budget(tmp_path: Path) -> None:
    answered = [0] * 4

    def ask(client: Client, index: int) -> None:
        # Past what the client itself would refuse: the server is what counts.
        with client.session((1, 6), Query(ahead=0)) as session:
            while True:
                session.run(torch.rand(1, 6))
                answered[index] += 1

    with _world(tmp_path / "1", predictions_per_client=25, counts=tmp_path) as here:
        clients = [here.client("client-1", timeout=60) for _ in answered]
        ended = here.together(*(lambda one=one, index=index: ask(one, index) for index, one in enumerate(clients)))
        assert all(isinstance(error, BudgetError) and "has had its 25 predictions" in str(error) for error in ended)
        for client in clients:
            client.close()
    assert sum(answered) == 25
    assert _had(tmp_path) == {"client-1": 25}


def test_control_without_a_budget_nothing_is_counted(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    with _world(tmp_path) as here:
        _predict(here, "client-1", 30, report=events.append)
    assert not [event for event in events if isinstance(event, Allowed)]
    assert not list(tmp_path.rglob(FILE))


def test_what_is_set_aside_is_on_the_disk_before_the_answer_and_comes_back_unused(tmp_path: Path) -> None:
    book = PredictionBook(tmp_path, 1000)
    meter = Meter(book, "a", 2)
    meter.count()
    # Five queries at once while many are left, so that not every one waits for the disk.
    assert _had(tmp_path) == {"a": 10}
    other = Meter(PredictionBook(tmp_path, 1000), "a", 2)
    other.count()
    assert _had(tmp_path) == {"a": 18}
    meter.close()
    other.close()
    assert _had(tmp_path) == {"a": 4}
    # One that is killed gives nothing back: it may have answered.
    Meter(book, "a", 2).count()
    assert book.left("a") == 1000 - 4 - 8


def test_many_writers_lose_no_count(tmp_path: Path) -> None:
    def count(name: str) -> None:
        meter = Meter(PredictionBook(tmp_path, 50), name, 1)
        for _ in range(10):
            meter.count()

    threads = [threading.Thread(target=count, args=(name,)) for name in ("a", "a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _had(tmp_path) == {"a": 30, "b": 10}


def test_a_count_that_cannot_be_kept_is_known_at_the_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{not json")
    with pytest.raises(ConfigError, match="restore the file, or remove it to count from zero"):
        PredictionBook(tmp_path, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep the count of predictions"):
        PredictionBook(tmp_path / "file" / "below", 5)
    with pytest.raises(ConfigError, match="needs a directory in which the count outlives the server"):
        check_answer_rules(AnswerRules(predictions_per_client=5), labels=True)


def test_a_server_that_gives_labels_only_opens_no_logits(tmp_path: Path) -> None:
    with _world(tmp_path, answers="label") as here:
        with pytest.raises(
            RefusedError, match='server: the server answers with labels only; ask with reveal = "label"'
        ):
            _predict(here, "client-1", 1)
        with here.client("client-1", timeout=60) as client:
            found = client.predict(torch.rand(2, 4), Query(reveal="label"))
    # Control: what was asked for in the right way is answered.
    assert found.logits is None
    assert found.labels.shape == (2,)


def test_sessions_listen_within_the_range_of_ports(tmp_path: Path) -> None:
    first = min(_free_port(), 65_000)
    with _world(tmp_path, session_ports=f"{first}-{first + 9}") as here:
        addresses: list[str] = []

        def reach(address: str) -> str:
            addresses.append(address)
            return address

        client = here.client("client-1", timeout=60, reach=reach)
        with client, client.session((1, 6)) as one, client.session((1, 6)) as other:
            assert one.run(torch.rand(1, 6)).shape == other.run(torch.rand(1, 6)).shape
        ports = [int(address.rsplit(":", 1)[1]) for address in addresses]
        assert len(set(ports)) == 2
        assert all(first <= port < first + 10 for port in ports)


def test_a_range_without_a_free_port_and_a_port_that_cannot_be_reached_are_said(tmp_path: Path) -> None:
    port = _free_port()
    with _world(tmp_path, session_ports=str(port)) as here, here.client("client-1", timeout=60) as client:
        no_port = f"no free port for another session among {port}-{port}"
        with client.session((1, 6)), pytest.raises(AddressError, match=no_port):
            client.session((1, 6)).__enter__()
    with _world(tmp_path / "other") as here:
        lost = here.client("client-2", timeout=1, reach=lambda _address: "tcp://127.0.0.1:9")
        unreachable = r"opened a session on tcp://127\.0\.0\.1:9, which could not be reached within 1 s; let this port"
        with lost, pytest.raises(AddressError, match=unreachable):
            lost.session((1, 6)).__enter__()
