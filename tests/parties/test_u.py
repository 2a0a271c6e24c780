"""A U: front and head at the clients, the middle at the server, which gets no labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import World, hello, model, part, world
from support.tensors import all_of, of_batch

from splitsec import Query, SplitModel
from splitsec.errors import ConfigError, MessageError, RefusedError
from splitsec.training.messages import Batch, HeadGradient, Upload
from splitsec.training.server.run import ServerRun

U = "1,4"


def _world(directory: Path, **options: Any) -> Any:
    return world(directory, cut=U, **options)


def _take_part(here: World, name: str, seed: int, cut: str, splits: dict[str, SplitModel]) -> Any:
    split = splits[name]

    def run() -> Any:
        with here.client(name, split.front, head=split.head, cut=cut) as client:
            client.train(part(seed), seed=seed)
            found = client.predict(part(seed).test_images[:5], Query(batch_size=2))
            client.leave()
        return found

    return run


@pytest.mark.parametrize("cut", [U, "1"])
def test_a_u_trains_and_predicts_and_the_server_gets_no_labels(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is the same run with one cut, in which the server does get them."""
    received: list[torch.Tensor] = []
    taken = ServerRun.handle

    def watch(self: ServerRun, name: str, body: Any, tensors: Any, *, now: float) -> Any:
        if isinstance(body, (Batch, HeadGradient)):
            received.extend(all_of(tensors))
        return taken(self, name, body, tensors, now=now)

    monkeypatch.setattr(ServerRun, "handle", watch)
    with world(tmp_path, epochs=3, cut=cut) as here:
        splits = {name: SplitModel(model(), cut) for name in ("client-1", "client-2")}
        results = here.together(*[_take_part(here, f"client-{seed}", seed, cut, splits) for seed in (1, 2)])
        here.threads[1].join(20)
        for seed, found in enumerate(results, 1):
            split = splits[f"client-{seed}"].eval()
            with torch.no_grad():
                middle = here.server.tail.eval()(split.front(part(seed).test_images[:5]))
                plain = middle if split.head is None else split.head(middle)
            torch.testing.assert_close(found.logits, plain, atol=1e-3, rtol=0)
    one, other = (splits[name].whole_state_dict() for name in ("client-1", "client-2"))
    owned = [key for key in one if not key.startswith("2.")] if cut == U else ["0.weight", "0.bias"]
    assert all(torch.equal(one[key], other[key]) for key in owned)
    labels = torch.cat([part(seed).train_labels for seed in (1, 2)])
    integers = [tensor for tensor in received if not tensor.is_floating_point()]
    if cut == U:
        assert received
        assert not integers
        # Nor as numbers of another kind.
        assert not any(set(tensor.flatten().tolist()) <= {0.0, 1.0, 2.0} for tensor in received)
    else:
        assert set(torch.cat(integers).tolist()) == set(labels.tolist())


def test_losses_of_a_u_reach_the_server_as_means_of_all(tmp_path: Path) -> None:
    events: list[Any] = []
    with _world(tmp_path, epochs=2, report=events.append) as here:
        splits = {name: SplitModel(model(), U) for name in ("client-1", "client-2")}
        here.together(*[_take_part(here, f"client-{seed}", seed, U, splits) for seed in (1, 2)])
        here.threads[1].join(20)
    epochs = [event for event in events if type(event).__name__ == "RoundDone"]
    assert len(epochs) == 2
    assert all(0 < event.loss < 3 and 0 <= event.accuracy <= 1 for event in epochs)


def test_what_is_not_due_in_a_u_is_refused(tmp_path: Path) -> None:
    with _world(tmp_path) as here:
        split = SplitModel(model(), U)
        options = {"cut": U, "head": split.head}
        with here.client("client-1", **options) as one, here.client("client-2", **options) as two:
            with pytest.raises(RefusedError, match="cuts at '1', the server at '1,4'"):
                one._connection.server.request(hello())
            one._connection.server.send(hello(cut=U))
            two._connection.server.request(hello(cut=U))
            one._connection.server.receive()
            with pytest.raises(MessageError, match="they stay at the client"):
                one._connection.server.request(Batch(0, 0, (6,)), of_batch(torch.zeros(2, 6), torch.zeros(2).long()))
            with pytest.raises(MessageError, match="HeadGradient was not due, Batch was"):
                one._connection.server.request(HeadGradient(0, 0), {"gradient": torch.zeros(2, 5)})
            one._connection.server.send(Batch(0, 0, (6,)), of_batch(torch.zeros(2, 6)))
            answer = two._connection.server.request(Batch(0, 0, (6,)), of_batch(torch.zeros(3, 6)))
            assert answer[1]["output"].shape == (3, 5)
            assert one._connection.server.receive()[1]["output"].shape == (2, 5)
            with pytest.raises(MessageError, match="has a step that is not finished"):
                one._connection.server.request(Upload(0), {"masked": [torch.zeros(30).long()]})
            with pytest.raises(MessageError, match="has 1 batches on their way"):
                one._connection.server.request(Batch(0, 1, (6,)), of_batch(torch.zeros(2, 6)))
            with pytest.raises(MessageError, match="the head's gradient has shape 3x5, expected 2x5"):
                one._connection.server.request(HeadGradient(0, 0), {"gradient": torch.zeros(3, 5)})
            one._connection.server.send(HeadGradient(0, 0), {"gradient": torch.zeros(2, 5)})
            answer = two._connection.server.request(HeadGradient(0, 0), {"gradient": torch.zeros(3, 5)})
            assert answer[1]["gradient"][0].shape == (3, 6)


def test_a_client_needs_a_head_for_a_u_and_for_nothing_else(tmp_path: Path) -> None:
    with _world(tmp_path, epochs=0) as here:
        split = SplitModel(model(), U)
        with pytest.raises(ConfigError, match="'1,4' needs a head"):
            here.client("client-1", cut=U)
        with pytest.raises(ConfigError, match="'1' has no head"):
            here.client("client-1", head=split.head)
        with here.client("client-1", split.front, cut=U, head=split.head) as client:
            with pytest.raises(ConfigError, match="ends before the labels"):
                client.predict(torch.zeros(1, 4), Query(reveal="label"))
            with pytest.raises(MessageError, match=r"images are torch\.int64; give real numbers"):
                client.predict(torch.zeros(1, 4).long())
