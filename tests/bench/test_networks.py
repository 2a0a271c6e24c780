"""Trained networks of the literature on real images: encrypted labels against plain ones."""

from pathlib import Path

import pytest
import torch
from two_party import run_both

from splitsec.bench.models import MODELS
from splitsec.cut import trace
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.run import run_program
from splitsec.training.data import load_dataset


def _agreement(data: Path, name: str, count: int, batch: int) -> tuple[float, float, float]:
    """Share of identical labels, accuracy, and the largest difference of logits."""
    whole = load_dataset("mnist", data, 0)
    images, labels = whole.test_images[:count], whole.test_labels[:count]
    model = MODELS[name].make(data / "weights" / f"{name}-mnist.safetensors")
    program, real = compile_tail(trace(model), (batch, 1, 28, 28), limit=8.0)
    weights = encode_weights(program, real)
    opened = []
    for rows in images.split(batch):

        def protocol(context: Context, rows: torch.Tensor = rows) -> torch.Tensor | None:
            client = context.rank == CLIENT
            return run_program(
                program, context, activation=rows if client else None, weights=None if client else weights
            )

        (_, logits), _ = run_both(protocol, weights={layer: one.weight for layer, one in weights.items()})
        opened.append(logits)
    with torch.no_grad():
        plain = model(images)
    found = torch.cat(opened)
    same = (found.argmax(1) == plain.argmax(1)).double().mean().item()
    accuracy = (found.argmax(1) == labels).double().mean().item()
    return same, accuracy, (found - plain).abs().max().item()


@pytest.mark.parametrize("name", ["network-b", "network-c"])
def test_labels_are_those_of_the_plain_network(shared_data: Path, name: str) -> None:
    same, accuracy, error = _agreement(shared_data, name, 100, 50)
    assert same == 1.0
    assert accuracy >= 0.97
    assert error < 1e-2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["network-b", "network-c"])
def test_a_thousand_images(shared_data: Path, name: str) -> None:
    same, accuracy, error = _agreement(shared_data, name, 1000, 50)
    print(f"{name}: identical labels {same:.2%}, accuracy {accuracy:.2%}, largest difference of logits {error:.1e}")
    assert same >= 0.999
    assert accuracy >= 0.985
