"""Whole runs of dealer, server and clients over real sockets, and what goes wrong in them."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import PATIENCE, World, hello, model, part, world
from support.tensors import of_batch
from torch import nn

from splitsec import Client, Query, SplitModel
from splitsec.cut import origin_of
from splitsec.errors import (
    AuthenticationError,
    ConfigError,
    CutError,
    MessageError,
    PartyTimeoutError,
    RandomnessError,
    RangeError,
    RefusedError,
    UnsupportedLayerError,
)
from splitsec.mpc.prg import fresh_seed
from splitsec.parties.messages import DealerBody, dealer_codec
from splitsec.prediction.messages import OpenSession
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.messages import Batch, BeginRun, Hello, JoinRun, OpenMasks, Upload, Welcome
from splitsec.transport import NO_TENSORS, Link, Wire
from splitsec.version import PROTOCOL

CUT = "1"
RUN = "0" * 32


def _train(here: World, name: str, seed: int) -> Any:
    split = SplitModel(model(), CUT)

    def run() -> SplitModel:
        with here.client(name, split.front) as client:
            client.train(part(seed), seed=seed)
            client.leave()
        return split

    return run


def test_two_clients_train_and_predict(tmp_path: Path) -> None:
    with world(tmp_path, epochs=3) as here:
        splits = {name: SplitModel(model(), CUT) for name in ("client-1", "client-2")}

        def run(name: str, seed: int) -> Any:
            split = splits[name]
            with here.client(name, split.front) as client:
                client.train(part(seed), seed=seed)
                found = client.predict(part(seed).test_images[:5], Query(batch_size=2))
                client.leave()
            return split.front, found, seed

        results = here.together(lambda: run("client-1", 1), lambda: run("client-2", 2))
        here.threads[1].join(20)
        assert not here.threads[1].is_alive()
        fronts = [front.state_dict() for front, _, _ in results]
        assert all(torch.equal(fronts[0][key], fronts[1][key]) for key in fronts[0])
        for front, found, seed in results:
            with torch.no_grad():
                plain = here.split.tail.eval()(front(part(seed).test_images[:5]))
            torch.testing.assert_close(found.logits, plain, atol=1e-3, rtol=0)
            assert found.logits.shape == (5, 3)
            assert len(found.online_ms) == len(found.offline_ms) == 3
            assert min(found.rounds, found.bytes_sent, found.bytes_received, found.bytes_offline) > 0


def test_the_combined_front_is_the_weighted_average(tmp_path: Path) -> None:
    """With a learning rate of nearly nothing, the average of different fronts can be checked."""
    with world(tmp_path, epochs=1) as here:
        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
        states = [split.front.state_dict() for split in results]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not torch.equal(states[0]["0.weight"], SplitModel(model(), CUT).front.state_dict()["0.weight"])


def test_a_client_that_never_comes_is_named_to_all(tmp_path: Path) -> None:
    with world(tmp_path, timeout=3.0) as here:
        (error,) = here.together(_train(here, "client-1", 1))
        assert isinstance(error, PartyTimeoutError)
        assert "client-2 did not come within 3 s" in str(error)
        here.threads[1].join(PATIENCE)
        assert "client-2 did not come" in str(here.server_error[0])


def test_a_client_that_falls_silent_is_named_to_the_others(tmp_path: Path) -> None:
    with world(tmp_path, timeout=3.0) as here:

        def vanishes() -> None:
            with here.client("client-2") as client:
                client._connection.server.request(hello(client.front))

        error, _ = here.together(_train(here, "client-1", 1), vanishes)
        assert isinstance(error, PartyTimeoutError)
        assert "client-2 sent nothing for 3 s in round 1; only client-1 is left, and the minimum is 2" in str(error)


def test_clients_that_do_not_fit_are_told_why(tmp_path: Path) -> None:
    with world(tmp_path) as here, here.client("client-1") as one, here.client("client-2") as two:
        with pytest.raises(RefusedError, match="cuts at '0', the server at '1'"):
            one._connection.server.request(hello(cut="0"))
        with pytest.raises(RefusedError, match=rf"speaks protocol 99 \(splitsec 9\), the server {PROTOCOL} \(splitsec"):
            one._connection.server.request(hello(protocol=99))
        with pytest.raises(RefusedError, match="no samples"):
            one._connection.server.request(hello(samples=0))
        one._connection.server.send(hello())
        deadline = time.monotonic() + PATIENCE
        while "client-1" not in here.server._run.state.members and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RefusedError, match="begin with different values"):
            two._connection.server.request(hello(begins="y"))
        other = r"the model of client-2 differs from that of client-1: 0.weight is 7x4 at client-2, 0.weight is 6x4 at"
        with pytest.raises(RefusedError, match=other):
            two._connection.server.request(hello(segments=(("0.weight", (7, 4)), ("0.bias", (6,)))))
        with pytest.raises(RefusedError, match=r"there is no 0.bias at client-2"):
            two._connection.server.request(hello(segments=(("0.weight", (6, 4)),)))


def test_two_processes_of_one_client_are_told_and_the_first_goes_on(tmp_path: Path) -> None:
    with world(tmp_path, epochs=1) as here:
        with here.client("client-1") as first, here.client("client-1") as twin:
            first._connection.server.send(hello(first.front))
            deadline = time.monotonic() + 10
            while "client-1" not in here.server._run.state.members and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(
                RefusedError, match="another process with the name and the key of client-1 is connected"
            ):
                twin._connection.server.request(hello(twin.front))
        # Control: when the first has gone, the client may be started again.
        with here.client("client-1") as again, here.client("client-2") as other:
            again._connection.server.send(hello(again.front))
            time.sleep(0.3)
            assert isinstance(other._connection.server.request(hello(other.front))[0], Welcome)
            assert isinstance(again._connection.server.receive()[0], Welcome)


def test_a_stranger_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    with world(tmp_path, epochs=1) as here:
        with here.client("stranger") as client, pytest.raises(AuthenticationError, match="refused our key"):
            client.train(part())
        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
        assert all(isinstance(result, SplitModel) for result in results)


BAD_BATCHES = [
    ({"activation": []}, "activation has 0 tensors, expected 1 to 4"),
    (of_batch(torch.zeros(2, 6)), "labels is missing"),
    (
        of_batch(torch.zeros(2, 6).double(), torch.zeros(2).long()),
        "Batch: activation has dtype float64, expected float32",
    ),
    (of_batch(torch.zeros(2, 7), torch.zeros(2).long()), "cannot take an activation of shape 2x7"),
    (of_batch(torch.zeros(2, 6), torch.zeros(3).long()), "Batch: labels has shape 3, expected 2"),
    (
        of_batch(torch.zeros(2, 6), torch.tensor([0, 3])),
        "labels from 0 to 3, but the model has 3 classes",
    ),
    (of_batch(torch.zeros(99, 6), torch.zeros(99).long()), "expected 1 to 8 rows"),
    (
        of_batch(torch.full((2, 6), float("nan")), torch.zeros(2).long()),
        "holds nan, which is not a finite number",
    ),
]


def test_bad_batches_are_refused_with_a_reason_and_the_server_stays_up(tmp_path: Path) -> None:
    with world(tmp_path) as here, here.client("client-1") as one, here.client("client-2") as two:
        one._connection.server.send(hello())
        two._connection.server.request(hello())
        one._connection.server.receive()
        for tensors, reason in BAD_BATCHES:
            with pytest.raises((MessageError, RangeError), match=reason):
                one._connection.server.request(
                    Batch(0, 0, tuple(tensors["activation"][0].shape[1:]) if tensors["activation"] else ()), tensors
                )
        good = of_batch(torch.zeros(2, 6), torch.zeros(2).long())
        with pytest.raises(MessageError, match="round 5 is not running"):
            one._connection.server.request(Batch(5, 0, (6,)), good)
        with pytest.raises(RefusedError, match="still in training"):
            one._connection.server.request(OpenSession((1, 6), fresh_seed(), mark=origin_of(here.split.tail).mark))
        one._connection.server.send(Batch(0, 0, (6,)), good)
        two._connection.server.request(Batch(0, 0, (6,)), good)
        assert one._connection.server.receive()[1]["gradient"][0].shape == (2, 6)


def _serving(here: World, name: str = "client-1") -> Client:
    client = here.client(name)
    client.front.load_state_dict(here.split.front.state_dict())
    return client


def test_predictions_without_training(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client:
        x = part().test_images
        with torch.no_grad():
            plain = here.split.eval()(x)
        torch.testing.assert_close(client.predict(x[:3]).logits, plain[:3], atol=1e-3, rtol=0)
        torch.testing.assert_close(client.predict(x, Query(batch_size=12)).logits, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "cut '1' holds nan"),
        (1e12, r"cut '1' holds a value of magnitude .*, beyond 256, the largest that the tail was compiled for"),
    ],
)
def test_values_out_of_range_name_the_layer_and_the_session_can_be_opened_again(
    tmp_path: Path, value: float, reason: str
) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client:
        with pytest.raises(RangeError, match=reason):
            client.predict(torch.full((1, 4), value))
        assert client.predict(torch.ones(1, 4)).logits.shape == (1, 3)


def test_a_tail_without_encrypted_form_is_refused_by_name(tmp_path: Path) -> None:
    def soft() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softsign(), nn.Linear(5, 3))

    with world(tmp_path, epochs=0, stay=True, model=soft) as here, _serving(here) as client:
        with pytest.raises(UnsupportedLayerError, match=r"server: layer '3' \(Softsign\) has no encrypted form"):
            client.predict(torch.ones(1, 4))
        with pytest.raises(MessageError, match="an activation cannot have shape"):
            client._connection.server.request(OpenSession((0, 6), fresh_seed(), mark=origin_of(here.split.tail).mark))
        with pytest.raises(MessageError, match="16 bytes"):
            client._connection.server.request(OpenSession((1, 6), b"x", mark=origin_of(here.split.tail).mark))


def test_several_sessions_at_once(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        x = part().test_images
        with torch.no_grad():
            plain = here.split.eval()(x)

        def ask(name: str) -> torch.Tensor:
            with _serving(here, name) as client:
                return client.predict(x).logits

        for logits in here.together(lambda: ask("client-1"), lambda: ask("client-2")):
            torch.testing.assert_close(logits, plain, atol=1e-3, rtol=0)


def test_a_client_that_dies_in_a_session_leaves_the_server_usable(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True, timeout=1.0) as here:

        class Died(Exception):
            pass

        def die() -> None:
            with _serving(here) as client, client.session((1, 6)) as session:
                session.prepare()
                raise Died

        assert isinstance(here.together(die)[0], Died)
        with _serving(here, "client-2") as client:
            assert client.predict(torch.ones(2, 4)).logits.shape == (2, 3)


def _dealer_link(wire: Wire, here: World) -> Link[DealerBody]:
    address, key = here.dealer.address, here.peers["dealer"]
    return Link(wire, address, peer="dealer", peer_key=key, codec=dealer_codec, timeout=PATIENCE)


def test_the_dealer_opens_masks_to_the_server_alone(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        with Wire(here.keys["server"]) as wire:
            link = _dealer_link(wire, here)
            link.request(BeginRun(RUN, "start", fresh=True))
            link.close()
        with Wire(here.keys["client-1"]) as wire:
            link = _dealer_link(wire, here)
            link.request(JoinRun(RUN, "start"))
            with pytest.raises(RandomnessError, match="client-1 may not begin a run"):
                link.request(BeginRun(RUN, "other", fresh=True))
            with pytest.raises(RandomnessError, match="client-1 may not open masks"):
                link.request(OpenMasks(RUN, "start", 0, ("client-1", "client-2"), 3))
            with pytest.raises(RandomnessError, match="has had its seed"):
                link.request(JoinRun(RUN, "start"))
            link.close()
        with Wire(here.keys["server"]) as wire:
            link = _dealer_link(wire, here)
            with pytest.raises(RandomnessError, match="the server gets no mask seed"):
                link.request(JoinRun(RUN, "start"))
            with pytest.raises(RandomnessError, match="at least 2"):
                link.request(OpenMasks(RUN, "start", 0, ("client-1",), 3))
            link.close()


def test_only_the_label_is_revealed_and_ranges_are_checked(tmp_path: Path) -> None:
    def heavy() -> nn.Module:
        made = model()
        with torch.no_grad():
            # So large that the weights guarantee no bound, and the calibration counts.
            made[2].weight.mul_(4e6)
            made[2].bias.zero_()
        return made

    torch.manual_seed(0)
    x = torch.rand(5, 6)
    with (
        world(tmp_path, epochs=0, stay=True, model=heavy, calibration=x * 0.01) as here,
        _serving(here) as client,
        torch.no_grad(),
    ):
        tail = here.split.tail.eval()
        found = client.predict(torch.zeros(3, 4), Query(reveal="label"))
        assert found.logits is None
        assert torch.equal(found.labels, here.split(torch.zeros(3, 4)).argmax(1))
        with client.session((5, 6), Query(reveal="label", checked=True)) as session:
            assert torch.equal(session.run(x * 0.01), tail(x * 0.01).argmax(1))
            # Hundred times what was calibrated: within what the input may be, and beyond what a layer may.
            with pytest.raises(RangeError, match=r"layer '2' overflowed: \d+ of its values reach"):
                session.run(x)
            assert torch.equal(session.run(x * 0.02), tail(x * 0.02).argmax(1))
        with client.session((5, 6)) as session:
            session.run(x)
        with client.session((5, 6), Query(comparison="dcf", ahead=2)) as session:
            for _ in range(4):
                torch.testing.assert_close(session.run(x * 0.02), tail(x * 0.02), atol=1e-3, rtol=5e-3)


def test_what_the_dealer_receives_does_not_depend_on_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from random session names the dealer's transcript is the same; a request that leaked would differ."""
    first = _dealer_transcript(tmp_path / "a", torch.zeros(3, 4), monkeypatch)
    second = _dealer_transcript(tmp_path / "b", torch.full((3, 4), 5.0), monkeypatch)
    assert first == second
    assert len(first) >= 5
    leaking = _dealer_transcript(tmp_path / "c", torch.zeros(2, 4), monkeypatch)
    assert leaking != first


def _dealer_transcript(directory: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    directory.mkdir()
    seen: list[str] = []
    with world(directory, epochs=0, stay=True) as here:
        take = here.dealer._take

        def record(incoming: Any, pool: Any) -> None:
            assert incoming.tensors == {}
            session = getattr(incoming.body, "session", "")
            seen.append(f"{incoming.sender.name} {incoming.body}".replace(session, "SESSION"))
            take(incoming, pool)

        monkeypatch.setattr(here.dealer, "_take", record)
        with _serving(here) as client:
            client.predict(x)
    # The server's worker leaves when it ends, which may be after the test has looked.
    return sorted(one for one in seen if "LeaveSession" not in one)


def test_wrong_cut_in_the_api() -> None:
    with pytest.raises(CutError, match="the valid cuts are"):
        SplitModel(model(), "99")


def test_the_server_hears_nothing_of_a_clients_values(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An error at the client, its own or its user's, reaches the server without its words."""
    # Of its own, so that what its workers log comes to this test.
    with world(tmp_path, epochs=0, stay=True, own_pool=True) as here, _serving(here) as client:
        with pytest.raises(RangeError, match="magnitude"):
            client.predict(torch.full((1, 4), 1e12))
        with pytest.raises(ValueError, match="patient 4711"), client.session((1, 6)):
            raise ValueError("patient 4711")
        assert client.predict(torch.ones(1, 4)).logits.shape == (1, 3)
    logged = capfd.readouterr().err + caplog.text
    assert "the client gave up" in logged
    assert "magnitude" not in logged
    assert "4711" not in logged


def test_a_client_hears_nothing_of_the_servers_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def heavy() -> nn.Module:
        made = model()
        with torch.no_grad():
            made[4].weight[0, 0] = 1234567890.0
        return made

    with world(tmp_path, epochs=0, stay=True, model=heavy) as here, _serving(here) as client:
        with pytest.raises(RangeError, match="the server's log names them") as refused:
            client.predict(torch.ones(1, 4))
        assert "1.23457e+09" not in str(refused.value)
    assert "layer '4' holds a value of magnitude 1.23457e+09" in caplog.text


def test_an_activation_of_another_shape_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client, client.session((4, 6)) as session:
        for wrong in (torch.randn(1, 6), torch.tensor(1.0)):
            with pytest.raises(MessageError, match="expected 4x6"):
                session.run(wrong)
        assert session.run(torch.randn(4, 6)).shape == (4, 3)


def test_an_activation_of_whole_numbers_is_no_share(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client, client.session((2, 6)) as session:
        x = torch.arange(12.0).view(2, 6) % 4
        with torch.no_grad():
            plain = here.split.tail.eval()(x)
        for dtype in (torch.uint8, torch.int32, torch.int64, torch.bool):
            with pytest.raises(MessageError, match=f"is {dtype}; give real numbers"):
                session.run(x.to(dtype))
        for dtype in (torch.float16, torch.float64):
            torch.testing.assert_close(session.run(x.to(dtype)), plain, atol=1e-3, rtol=0)


def test_bytes_that_are_no_message_end_neither_server_nor_dealer(tmp_path: Path) -> None:
    rubbish = [b"\x82\xa4body\x81\xa4type\xa2\xff\xff"]
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client:
        for link in (client._connection.server, client._connection.dealer):
            link._socket.send_multipart(rubbish)
            with pytest.raises(MessageError, match="malformed"):
                link.receive()
        assert client.predict(torch.ones(1, 4)).logits.shape == (1, 3)


def test_what_torch_cannot_do_is_refused_and_the_server_stays_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(tmp_path) as here, here.client("client-1") as one:

        def fails(*_args: object) -> None:
            raise ZeroDivisionError("something of 4711")

        monkeypatch.setitem(here.server._run._handlers, Hello, fails)
        with pytest.raises(RefusedError, match="could not handle the message; see its log") as refused:
            one._connection.server.request(hello())
        assert "4711" not in str(refused.value)
        assert here.threads[1].is_alive()


def test_a_client_waits_for_a_slow_one_beyond_its_own_time_limit(tmp_path: Path) -> None:
    uploaded = threading.Event()
    # The server tells those who wait several times within its own limit.
    with world(tmp_path, epochs=1, timeout=6.0) as here:
        first, second = SplitModel(model(), CUT), SplitModel(model(), CUT)

        def slow() -> Any:
            split = second
            with here.client("client-2", split.front) as client:
                send = client._connection.server.send

                def delayed(body: Any, tensors: Any = NO_TENSORS) -> None:
                    if isinstance(body, Batch) and body.step == 1:
                        assert uploaded.wait(PATIENCE)
                        time.sleep(3.5)
                    send(body, tensors)

                client._connection.server.send = delayed  # type: ignore[method-assign]
                client.train(part(2), seed=2)
                client.leave()
            return split

        def hasty() -> Any:
            split = first
            # One batch only: it waits for the other's two in its upload, longer than its limit.
            with here.client("client-1", split.front, timeout=3.0, join_timeout=3.0) as client:
                send = client._connection.server.send

                def watched(body: Any, tensors: Any = NO_TENSORS) -> None:
                    send(body, tensors)
                    if isinstance(body, Upload):
                        uploaded.set()

                client._connection.server.send = watched  # type: ignore[method-assign]
                client.train(part(1, rows=8), seed=1)
                client.leave()
            return split

        results = here.together(hasty, slow)
        assert all(isinstance(result, SplitModel) for result in results), results


def test_a_round_that_cannot_be_combined_ends_the_run_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path, epochs=1) as here:

        def refuses(*_args: object, **_options: object) -> Any:
            raise RandomnessError("no masks today")

        monkeypatch.setattr(MaskBook, "open_sum", refuses)
        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
        assert [type(result) for result in results] == [RandomnessError, RandomnessError]
        assert all("no masks today" in str(result) for result in results)


def test_sessions_are_given_back_and_no_client_takes_them_all(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True, timeout=2.0, own_pool=True) as here:
        with _serving(here) as client:
            for _ in range(3):
                with pytest.raises(ValueError), client.session((1, 6)):
                    raise ValueError
            deadline = time.monotonic() + PATIENCE
            while len(here.dealer._sessions) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(here.dealer._sessions) == 0
            for _ in range(8):
                client._connection.server.request(
                    OpenSession((1, 6), fresh_seed(), mark=origin_of(here.split.tail).mark)
                )
            with pytest.raises(RefusedError, match="8 prediction sessions open, its share"):
                client._connection.server.request(
                    OpenSession((1, 6), fresh_seed(), mark=origin_of(here.split.tail).mark)
                )
        with _serving(here, "client-2") as other:
            assert other.predict(torch.ones(1, 4)).logits.shape == (1, 3)


def test_training_on_the_inputs_themselves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inputs in plain"), world(tmp_path, cut="input"):
        pass


def test_a_value_out_of_range_does_not_part_the_queries_of_the_two(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client, client.session((2, 6)) as session:
        x = torch.rand(2, 6)
        with torch.no_grad():
            plain = here.split.tail.eval()(x)
        for _ in range(3):
            session.prepare()
            with pytest.raises(RangeError):
                session.run(torch.full((2, 6), 1e12))
            torch.testing.assert_close(session.run(x), plain, atol=1e-3, rtol=0)


def test_parties_in_different_queries_find_out(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, _serving(here) as client:

        def out_of_step() -> None:
            with client.session((2, 6)) as session:
                session._ask(2)
                session._supply.wait(1, timeout=PATIENCE)
                # The second query's randomness at this party, the first one's at the server.
                session._session._next_run = session._prepared = 1
                session.run(torch.rand(2, 6))

        with pytest.raises(MessageError, match="for step 0"):
            out_of_step()


def test_a_front_that_looks_words_up(tmp_path: Path) -> None:
    def words() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(20, 6), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3))

    split = SplitModel(words(), CUT).eval()
    with world(tmp_path, epochs=0, stay=True, model=words) as here, here.client("client-1", split.front) as client:
        x = torch.randint(0, 20, (3, 4))
        with torch.no_grad():
            torch.testing.assert_close(client.predict(x).logits, words().eval()(x), atol=1e-3, rtol=0)
        with pytest.raises(MessageError, match=r"torch\.float32; give whole numbers"):
            client.predict(torch.zeros(1, 4))
