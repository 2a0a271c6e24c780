"""Trained weights of every layout, and rounds and bytes of encrypted predictions, against recorded values.

A change of the code's structure must change neither. `unchanged.json` holds what version 0.1.0 gave. Rounds and bytes
are exact everywhere. Weights are compared to the bit on machines that compute as a recorded one does, which a network
trained without any splitting tells, and to 1e-4 with one of them elsewhere: libraries order their sums by the
processor, and torch draws dropout with Intel's library on Intel's processors alone. `python tests/test_unchanged.py`
prints this machine's record.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encrypted_tail import compiled
from torch import nn

from splitsec import Part, RunSettings, SplitModel
from splitsec.cut.joined import VerticalModel
from splitsec.data.columns import Columns
from splitsec.data.loaders import Loader
from splitsec.local.simulation import SimulationSettings, simulate
from splitsec.models.demo import digits_cnn
from splitsec.models.load import load_model
from splitsec.mpc.program.cost import predict_cost
from splitsec.training.plain import train_alone

RECORD = Path(__file__).with_name("unchanged.json")
ALONE = "model part"
NAMES = ("client-1", "client-2", "client-3")
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "horizontal": ("2", {}),
    "horizontal, two batches in flight": ("2", {"batches_in_flight": 2}),
    "horizontal, a round of two steps": ("2", {"steps_per_round": 2}),
    "horizontal, cosine decay": ("2", {"decay": True}),
    "horizontal, momentum and FedProx": ("2", {"server_momentum": 0.5, "proximal": 0.1}),
    "horizontal, float16": ("2", {"compression": "float16"}),
    "horizontal, topk": ("2", {"compression": "topk:0.25"}),
    "horizontal, relay": ("2", {"aggregation": "relay"}),
    "horizontal, none": ("2", {"aggregation": "none"}),
    "u": ("2,5", {}),
    "u, relay": ("2,5", {"aggregation": "relay"}),
    "u, topk, two in flight": ("2,5", {"compression": "topk:0.25", "batches_in_flight": 2}),
    "vertical, concat": ("join", {"join": "concat"}),
    "vertical, sum": ("join", {"join": "sum"}),
}
TAILS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "digits_cnn": (digits_cnn, "pool", (1, 8, 8)),
    "mnist_cnn": (lambda: load_model("splitsec.models:mnist_cnn"), "pool", (1, 28, 28)),
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def _rows(seed: int, count: int) -> Part:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=draw)
    labels = inputs[:, :3].argmax(1)
    return Part(inputs, labels, inputs[:2], labels[:2])


def _columns(seed: int, width: int, *, labels: bool) -> Columns:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(20, width, generator=draw)
    ids = tuple(f"person-{row}" for row in range(20))
    return Columns(ids, values, (values[:, 0] > 0).long() if labels else None)


def _vertical(join: str) -> VerticalModel:
    torch.manual_seed(0)
    fronts = {"client-1": nn.Linear(3, 4), "client-2": nn.Linear(2, 4)}
    return VerticalModel(fronts, nn.Linear(8 if join == "concat" else 4, 2), join=join)  # type: ignore[arg-type]


def _state(segments: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, part in segments.items() for key, value in part.state_dict().items()}


def _summary(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    sums = {name: [float(state[name].double().sum()), float(state[name].double().abs().sum())] for name in state}
    return {"digest": digest.hexdigest(), "sums": sums}


def train(layout: str) -> dict[str, torch.Tensor]:
    """Values of all segments after two epochs of a layout, by segment and name."""
    cut, options = LAYOUTS[layout]
    begin: dict[str, list[nn.Module]] = {}
    data: dict[str, Any] = {}
    if cut == "join":
        model = _vertical(options["join"])
        tail = model.tail
        begin = {name: [front] for name, front in model.fronts.items()}
        data = {"client-1": _columns(1, 3, labels=True), "client-2": _columns(2, 2, labels=False)}
        options = {**options, "aggregation": "none"}
    else:
        split = SplitModel(_network(), cut)
        tail = copy.deepcopy(split.tail)
        parts = [part for part in (split.front, split.head) if part is not None]
        begin = {name: copy.deepcopy(parts) for name in NAMES}
        data = {name: _rows(seed, count) for seed, (name, count) in enumerate(zip(NAMES, (12, 20, 9), strict=True), 1)}
    settings = RunSettings(**{"clients": tuple(begin), "epochs": 2, "batch_size": 4, "learning_rate": 0.01, **options})
    result = simulate(
        tail,
        lambda name: begin[name],
        data,
        cut=cut,
        settings=settings,
        how=SimulationSettings(seed=5, repeatable=True),
    )
    segments = {"tail": tail}
    for name, owned in result.segments.items():
        segments |= {f"{name}.{number}": segment for number, segment in enumerate(owned)}
    return _state(segments)


def train_part() -> dict[str, torch.Tensor]:
    """Values of a part of a model that one client trains alone."""
    model = _network()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(3)
        data = _rows(1, 20)
        train_alone(
            model, Loader(data.train_images, data.train_labels, batch_size=4, seed=3), epochs=2, learning_rate=0.01
        )
    finally:
        torch.set_num_threads(threads)
    return _state({"part": model})


def cost(name: str, comparison: str, batch: int) -> dict[str, Any]:
    """Rounds and bytes of one encrypted prediction of a network of the demo, online and offline, at the client."""
    make, cut, shape = TAILS[name]
    torch.manual_seed(0)
    split = SplitModel(make().eval(), cut)
    with torch.no_grad():
        activation = split.front(torch.zeros(batch, *shape))
    program = compiled(split.tail, tuple(activation.shape), comparison=comparison)[0]  # type: ignore[arg-type]
    prediction = predict_cost(program, 1)
    total = prediction.total
    return {
        "rounds": total.rounds,
        "sent": total.bytes_sent,
        "received": total.bytes_received,
        "hops": prediction.hops,
        "offline elements": sum(layer.elements_offline for layer in prediction.layers),
    }


def _costs() -> dict[str, Any]:
    return {
        f"{name}, {comparison}, batch {batch}": cost(name, comparison, batch)
        for name in TAILS
        for comparison in ("tables", "dcf")
        for batch in (1, 32)
    }


def _check(state: dict[str, torch.Tensor], machine: dict[str, Any], *, exactly: bool) -> None:
    """Compare with the values of a recorded machine, to the bit or nearly."""
    summary = _summary(state)
    assert summary["sums"].keys() == machine["sums"].keys()
    for name, sums in summary["sums"].items():
        assert sums == pytest.approx(machine["sums"][name], abs=1e-4 * max(1, state[name].numel())), name
    if exactly:
        assert summary["digest"] == machine["digest"]


def _nearly(state: dict[str, torch.Tensor], machine: dict[str, Any]) -> bool:
    try:
        _check(state, machine, exactly=False)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORD.read_text())
    return content


@pytest.fixture(scope="module")
def machine(record: dict[str, Any]) -> dict[str, Any] | None:
    """Values of the recorded machine that computes as this one to the bit, if there is one."""
    digest = _summary(train_part())["digest"]
    return next((machine for machine in record["machines"] if machine[ALONE]["digest"] == digest), None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_layout(layout: str, record: dict[str, Any], machine: dict[str, Any] | None) -> None:
    state = train(layout)
    if machine is not None:
        _check(state, machine[layout], exactly=True)
    else:
        assert any(_nearly(state, other[layout]) for other in record["machines"])


def test_weights_of_a_part_of_a_model(record: dict[str, Any]) -> None:
    assert any(_nearly(train_part(), machine[ALONE]) for machine in record["machines"])


def test_rounds_and_bytes_of_encrypted_predictions(record: dict[str, Any]) -> None:
    assert _costs() == record["costs"]


def test_control_other_values_are_seen() -> None:
    state = train("horizontal")
    summary = _summary(state)
    assert not _nearly({name: value + 0.01 for name, value in state.items()}, summary)
    state["tail.4.bias"][0] += 1e-6
    _check(state, summary, exactly=False)
    with pytest.raises(AssertionError):
        _check(state, summary, exactly=True)


if __name__ == "__main__":
    print(json.dumps({name: _summary(train(name)) for name in LAYOUTS} | {ALONE: _summary(train_part())}, indent=1))
