"""Trained networks of the literature on real images: encrypted labels against plain ones."""

from pathlib import Path

import pytest
import torch
from support.encrypted_tail import compiled
from support.two_party import run_both

from splitsec.cut import trace
from splitsec.data.datasets import load_dataset
from splitsec.errors import ConfigError
from splitsec.models.literature import MODELS, find_model
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program.compile import encode_weights
from splitsec.mpc.program.execute import run_program


def _agreement(data: Path, name: str, count: int, batch: int) -> tuple[float, float, float]:
    """Return the fraction of identical labels, accuracy, and the largest difference of logits."""
    whole = load_dataset("mnist", data, 0)
    images, labels = whole.test_images[:count], whole.test_labels[:count]
    model = MODELS[name].make(data / "weights" / f"{name}-mnist.safetensors")
    program, real = compiled(trace(model), (batch, 1, 28, 28), limit=8.0)
    weights = encode_weights(program, real)
    opened = []
    for rows in images.split(batch):

        def protocol(context: Context, rows: torch.Tensor = rows) -> torch.Tensor | None:
            client = context.rank == CLIENT
            return run_program(
                program, context, activation=rows if client else None, weights=None if client else weights
            )

        (_, logits), _ = run_both(protocol, weights={layer: values.weight for layer, values in weights.items()})
        opened.append(logits)
    with torch.no_grad():
        plain = model(images)
    encrypted = torch.cat(opened)
    same = (encrypted.argmax(1) == plain.argmax(1)).double().mean().item()
    accuracy = (encrypted.argmax(1) == labels).double().mean().item()
    return same, accuracy, (encrypted - plain).abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_a_network_takes_its_input_and_has_the_same_weights_every_time(name: str) -> None:
    model, again = (MODELS[name].make() for _ in range(2))
    assert not model.training
    with torch.no_grad():
        output = model(torch.zeros(1, *MODELS[name].input_shape))
    assert output.shape == ((1, 100_000) if name == "relu" else (1, 10))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_resnet20_has_the_parameters_of_its_paper() -> None:
    """K. He et al. 2016, table 6: 0.27 million."""
    assert round(sum(value.numel() for value in MODELS["resnet20"].make().parameters()) / 1e6, 2) == 0.27


def test_a_users_own_network_needs_the_shape_of_its_input() -> None:
    assert find_model("m1", None) is MODELS["m1"]
    assert find_model("net.py:Net", (3,)).input_shape == (3,)
    assert find_model("net.py:Net", (3,)).source.endswith("/net.py:Net")
    with pytest.raises(ConfigError, match="say the shape of one input of 'net.py:Net': --input 3,32,32"):
        find_model("net.py:Net", None)
    with pytest.raises(ConfigError, match="unknown model 'm9'; choose one of m1, network-a"):
        find_model("m9", None)


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
