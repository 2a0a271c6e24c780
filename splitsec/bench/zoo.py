"""Encrypted prediction of torchvision's models at a late cut, on random weights: do the labels stay the same?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from splitsec.cut import SplitModel
from splitsec.errors import ConfigError
from splitsec.launch.prediction import PredictResult, Samples, predict
from splitsec.models import load_model

SIDE = 224
INPUTS = 5
LATE_CUTS = {
    "resnet18": "layer3",
    "mobilenet_v2": "features.14",
    "vgg11_bn": "classifier.2",
    "squeezenet1_0": "features.9",
    "densenet121": "features.transition3",
    "vit_b_16": "encoder.layers.encoder_layer_11",
    "convnext_tiny": "features.7.1",
}


@dataclass(frozen=True)
class ZooRecord:
    """One model: how much the encrypted tail computes, and what prediction gave."""

    model: str
    cut: str
    tail_parameters: int
    result: PredictResult


def prepare(model: nn.Module) -> None:
    """Give an untrained model logits that differ.

    As torchvision makes them, batch norm without statistics lets values shrink to 1e-9 in some, and the last layer of
    others is zero: then every label is a tie. Statistics of noise and a random last layer take that away.
    """
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Linear) and not module.weight.detach().any():
            nn.init.normal_(module.weight, std=0.02)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, SIDE, SIDE))
    model.eval()


def run_zoo(names: list[str], on_start: Callable[[str], None]) -> list[ZooRecord]:
    """Predict five images of noise with each model; raises `ConfigError` for a name that is not listed."""
    unknown = [name for name in names if name.partition(":")[0] not in LATE_CUTS]
    if unknown:
        raise ConfigError(f"unknown model '{unknown[0]}'; choose of {', '.join(LATE_CUTS)}, or write NAME:CUT")
    records = []
    for one in names:
        name, _, cut = one.partition(":")
        cut = cut or LATE_CUTS[name]
        on_start(f"{name}, cut at {cut}")
        model = load_model(name)
        prepare(model)
        parameters = sum(value.numel() for value in SplitModel(model, cut, check=False).tail.parameters())
        torch.manual_seed(1)
        images = torch.randn(INPUTS, 3, SIDE, SIDE)
        with tempfile.TemporaryDirectory(prefix="splitsec-zoo-") as directory:
            weights = Path(directory) / "weights"
            save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, weights)
            result = predict(name, cut, Samples(images), weights=weights, report=lambda _event: None)
        records.append(ZooRecord(name, cut, parameters, result))
    return records
