"""A front predicts with the tail that it was trained with, and with no other."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parties_in_threads import model, part, world
from torch import nn

from splitsec import Network, RunSettings, Server, SplitModel, Storage, load_trained
from splitsec.cut import Origin, origin_of
from splitsec.cut.segment_files import save_segment
from splitsec.errors import ConfigError, RefusedError
from splitsec.events import ignore
from splitsec.parties.run import make_segments, make_server, run_client
from splitsec.settings.parties import ClientConfig, ServerConfig
from splitsec.settings.privacy import Privacy
from splitsec.training.checkpoints import Checkpoints, identity_of
from splitsec.training.server.checkpoint import check_same_run
from splitsec.transport import load_key_pair, load_public_keys, make_keys

MODEL = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def trained():
    model = net()
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
    return model
"""


def test_a_front_of_the_run_is_answered_and_every_other_is_refused(tmp_path: Path) -> None:
    with world(tmp_path / "keys", epochs=1, stay=True) as here:
        fresh = copy.deepcopy(here.front)
        clients = [here.client(f"client-{number}") for number in (1, 2)]
        results = here.together(*(lambda client=client: client.train(part(), seed=0) for client in clients))
        assert not [result for result in results if isinstance(result, BaseException)]
        x = part().test_images[:2]
        # The control: the front that was trained with this tail.
        assert clients[0].predict(x).logits.shape == (2, 3)
        origin = origin_of(clients[0].front)
        assert origin == origin_of(clients[1].front)
        assert (origin.mark, origin.run) == (origin_of(here.split.tail).mark, origin_of(here.split.tail).run)
        # Untrained, of the whole model that the run began with.
        with (
            here.client("client-2", fresh) as other,
            pytest.raises(RefusedError, match="does not belong to the server"),
        ):
            other.predict(x)
        # Made by hand.
        with (
            here.client("client-2", nn.Sequential(nn.Linear(4, 6), nn.ReLU())) as other,
            pytest.raises(RefusedError, match="is of an unknown model, the tail of run .* after 1 round;"),
        ):
            other.predict(x)
        # Trained on since, by itself.
        with torch.no_grad():
            next(clients[1].front.parameters()).add_(1e-3)
        with pytest.raises(ConfigError, match="has changed since it was trained in run"):
            clients[1].predict(x)
        for client in clients:
            client.close()


def test_a_front_of_another_run_is_refused(tmp_path: Path) -> None:
    fronts = []
    for run in ("one", "two"):
        with world(tmp_path / run, epochs=1, stay=True) as here:
            clients = [here.client(f"client-{number}") for number in (1, 2)]
            here.together(*(lambda client=client: client.train(part(), seed=0) for client in clients))
            fronts.append(copy.deepcopy(clients[0].front))
            for client in clients:
                client.close()
            if run == "two":
                x = part().test_images[:2]
                with here.client("client-1", fronts[1]) as same:
                    assert same.predict(x).logits is not None
                with here.client("client-1", fronts[0]) as other, pytest.raises(RefusedError, match="does not belong"):
                    other.predict(x)


def test_whole_models_with_equal_values_belong_together() -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    marks = [origin_of(SplitModel(net(seed), "1").front).mark for seed in (0, 0, 1)]
    assert marks[0] == marks[1] == origin_of(SplitModel(net(0), "1").tail).mark != marks[2]
    split = SplitModel(net(1), "1")
    split.load_whole_state_dict(net(0).state_dict())
    assert origin_of(split.tail).mark == marks[0]
    assert origin_of(copy.deepcopy(split.front)).mark == marks[0]


def test_a_client_with_another_model_is_refused_at_the_door(tmp_path: Path) -> None:
    with world(tmp_path, epochs=1) as here:
        wider = SplitModel(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), "1"
        ).front
        with here.client("client-1", wider) as client, pytest.raises(RefusedError, match="differs from the server's"):
            client.train(part(), seed=0)


def _config(directory: Path, **changed: object) -> ServerConfig:
    make_keys(directory / "keys", ["server", "dealer", "a", "b"])
    (directory / "net.py").write_text(MODEL)
    settings = {
        "address": "tcp://127.0.0.1:*",
        "dealer": "tcp://127.0.0.1:1",
        "model": f"{directory}/net.py:net",
        "cut": "1",
        "clients": ("a", "b"),
        "epochs": 0,
        "timeout": 1.0,
    }
    return ServerConfig(**{**settings, **changed})  # type: ignore[arg-type]


def test_an_untrained_tail_answers_nobody(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ConfigError, match="with epochs = 0 and no weights the tail would be untrained"):
        make_server(config, tmp_path, ignore)
    # The controls: a model that brings its values, and one that is to be trained.
    for changed in ({"model": f"{tmp_path}/net.py:trained"}, {"epochs": 1}):
        (tmp_path / "keys").rename(tmp_path / "old")
        make_server(_config(tmp_path, **changed), tmp_path, ignore)._close()
        for path in (tmp_path / "old").iterdir():
            path.unlink()
        (tmp_path / "old").rmdir()


def test_an_untrained_front_asks_for_nothing(tmp_path: Path) -> None:
    _config(tmp_path)
    part().save(tmp_path / "data.safetensors")
    config = ClientConfig(
        name="a",
        server="tcp://127.0.0.1:1",
        dealer="tcp://127.0.0.1:2",
        model=f"{tmp_path}/net.py:net",
        cut="1",
        data="data.safetensors",
        train=False,
    )
    with pytest.raises(ConfigError, match="with train = false and no weights the front would be untrained"):
        run_client(config, tmp_path, ignore)


def test_weights_of_a_whole_model_belong_together_and_a_nameless_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    source = f"{tmp_path}/net.py:net"
    whole = SplitModel(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "1")
    save_file(whole.whole_state_dict(), tmp_path / "whole.safetensors")
    origins = [
        origin_of(make_segments(source, "1", None, (which,), tmp_path / "whole.safetensors")[1][0])  # type: ignore[arg-type]
        for which in ("front", "tail")
    ]
    assert origins[0] == origins[1] == origin_of(whole.front)
    save_file(dict(whole.front.state_dict()), tmp_path / "front.safetensors")
    with pytest.raises(ConfigError, match="has no record of where its values come from"):
        make_segments(source, "1", None, ("front",), tmp_path / "front.safetensors")


# Another value of every setting of a run: a new setting without an entry fails the test below.
OTHER = {
    "clients": ("client-1", "client-3"),
    "batch_size": 4,
    "learning_rate": 1e-3,
    "aggregation": "relay",
    "steps_per_round": 1,
    "minimum_clients": 3,
    "batches_in_flight": 2,
    "proximal": 0.1,
    "server_momentum": 0.5,
    "decay": True,
    "compression": "float16",
    "join": "sum",
    "row_order_seed": 7,
    "held_out": 0.5,
    "privacy": Privacy(activation_clip=1.0),
    "layout": "of another package",
}


@pytest.mark.parametrize("name", RunSettings.__dataclass_fields__)
def test_a_setting_that_changes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings = RunSettings(clients=("client-1", "client-2"), epochs=2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {}, {"identity": identity_of("1", settings), "epochs": 2})
    # The control.
    assert check_same_run(checkpoints, 2, "1", settings)["round"] == 2
    if name == "epochs":
        assert check_same_run(checkpoints, 2, "1", replace(settings, epochs=5))
        with pytest.raises(ConfigError, match="has epochs = 2 and epochs = 1 here: epochs may only grow"):
            check_same_run(checkpoints, 2, "1", replace(settings, epochs=1))
        return
    with pytest.raises(ConfigError, match=rf"of another run: {name} is .* there and .* here"):
        check_same_run(checkpoints, 2, "1", replace(settings, **{name: OTHER[name]}))
    with pytest.raises(ConfigError, match="cut is '1' there"):
        check_same_run(checkpoints, 2, "3", settings)


def test_a_run_goes_on_with_more_epochs_but_not_with_other_data(tmp_path: Path) -> None:
    def run(*, epochs: int = 2, seed: int = 0, rows: int = 12) -> list[object]:
        options = {
            "checkpoints": tmp_path / "server",
            "dealer_options": {"storage": Storage(checkpoints=tmp_path / "dealer")},
        }
        keys = tmp_path / f"keys-{epochs}-{seed}-{rows}"
        with world(keys, epochs=epochs, timeout=3, **options) as here:  # type: ignore[arg-type]
            clients = [here.client(f"client-{number}", timeout=3, join_timeout=3) for number in (1, 2)]
            data = part(rows=rows)
            results = here.together(
                *(
                    lambda client=client: client.train(
                        data, seed=seed, storage=Storage(checkpoints=tmp_path / client.name)
                    )
                    for client in clients
                )
            )
            for client in clients:
                client.close()
            return results

    def facts(party: str, number: int) -> dict[str, object]:
        held: dict[str, object] = json.loads((tmp_path / party / f"round-{number:06d}.json").read_text())
        return held

    assert not [one for one in run() if isinstance(one, BaseException)]
    server, client = facts("server", 2), facts("client-1", 2)
    assert server["mark"] == client["mark"] != ""
    assert (server["run"], server["version"]) == (client["run"], client["version"])
    errors = run(seed=1)
    assert all(isinstance(error, ConfigError) and "another seed" in str(error) for error in errors)
    errors = run(rows=11)
    assert all(isinstance(error, ConfigError) and "is not that which the run" in str(error) for error in errors)
    assert not [one for one in run(epochs=4) if isinstance(one, BaseException)]
    assert facts("server", 4)["epochs"] == 4
    tails = [load_file(tmp_path / "server" / f"round-00000{number}.safetensors")["tail.2.weight"] for number in (3, 4)]
    assert not torch.equal(*tails)


def test_segments_with_values_of_two_runs_are_refused_in_the_api(tmp_path: Path) -> None:
    with world(tmp_path / "keys", epochs=1, stay=True) as here:
        clients = [here.client(f"client-{number}") for number in (1, 2)]
        here.together(*(lambda client=client: client.train(part(), seed=0) for client in clients))
        x = part().test_images[:2]
        wanted = clients[0].predict(x).labels
        clients[0].save(tmp_path / "front.safetensors")
        here.server.save(tmp_path / "tail.safetensors")
        for client in clients:
            client.close()
        split = SplitModel(model(), "1")
        # Values alone, as any library loads them: nobody could tell whose they are.
        split.front.load_state_dict(load_file(tmp_path / "front.safetensors"))
        with (
            here.client("client-1", split.front) as client,
            pytest.raises(ConfigError, match=r"splitsec\.load_trained"),
        ):
            client.predict(x)
        # The control: with the record of the run.
        load_trained(split, tmp_path / "front.safetensors")
        with here.client("client-1", split.front) as client:
            assert torch.equal(client.predict(x).labels, wanted)
        with torch.no_grad():
            next(split.front.parameters()).add_(1e-3)
        with (
            here.client("client-1", split.front) as client,
            pytest.raises(ConfigError, match="has changed since it was trained in run"),
        ):
            client.predict(x)


def test_a_server_of_predictions_alone_takes_a_trained_tail_and_no_changed_one(tmp_path: Path) -> None:
    split = SplitModel(model(), "1")
    save_segment(
        tmp_path / "tail.safetensors",
        split.tail.state_dict(),
        role="tail",
        party="server",
        cut="1",
        origin=Origin(mark="1" * 32, run="2" * 32, rounds=3),
    )
    changed = SplitModel(model(), "1")
    with torch.no_grad():
        next(changed.tail.parameters()).add_(1)

    make_keys(tmp_path / "keys", ["server", "dealer", "a", "b"])

    def served(tail: nn.Module) -> None:
        Server(
            tail,  # type: ignore[arg-type]
            cut="1",
            settings=RunSettings(clients=("a", "b"), epochs=0),
            network=Network(
                keys=load_key_pair(tmp_path / "keys", "server"),
                peers=load_public_keys(tmp_path / "keys"),
                address="tcp://127.0.0.1:*",
                dealer="tcp://127.0.0.1:1",
            ),
        )._close()

    with pytest.raises(ConfigError, match=r"the tail's values have changed since the model was cut.*SplitModel\.mark"):
        served(changed.tail)
    changed.mark()
    served(changed.tail)
    load_trained(changed, tmp_path / "tail.safetensors")
    served(changed.tail)
    assert origin_of(changed.tail).run == "2" * 32
    assert torch.equal(next(changed.tail.parameters()), next(split.tail.parameters()))


def test_what_the_api_loads_has_a_record_and_the_right_cut(tmp_path: Path) -> None:
    split = SplitModel(model(), "1")
    save_file(split.front.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="no record of where its values come from"):
        load_trained(split, tmp_path / "bare.safetensors")
    origin = Origin(mark="1" * 32, run="2" * 32, rounds=3)
    path = tmp_path / "front.safetensors"
    save_segment(path, split.front.state_dict(), role="front", party="a", cut="1", origin=origin)
    with pytest.raises(ConfigError, match="was cut at '1', and the cut here is '2'"):
        load_trained(SplitModel(model(), "2"), path)
    torch.manual_seed(9)
    u = SplitModel(model(), ("1", "4"))
    assert u.head is not None
    state = {**u.front.state_dict(), **u.head.state_dict()}
    save_segment(path, state, role="front", party="a", cut=u.cut, origin=origin)
    other = SplitModel(model(), ("1", "4"))
    with torch.no_grad():
        next(other.head.parameters()).add_(1)  # type: ignore[union-attr]
    load_trained(other, path)
    assert other.head is not None
    assert all(torch.equal(value, state[key]) for key, value in other.head.state_dict().items())
    assert origin_of(other.head) == origin_of(other.front)


def test_a_front_as_the_tail_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    front = SplitModel(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "1"
    ).front
    save_segment(
        tmp_path / "front.safetensors", front.state_dict(), role="front", party="a", cut="1", origin=origin_of(front)
    )
    with pytest.raises(ConfigError, match="holds the front of a, and a tail is wanted here"):
        make_segments(f"{tmp_path}/net.py:net", "1", None, ("tail",), tmp_path / "front.safetensors")
