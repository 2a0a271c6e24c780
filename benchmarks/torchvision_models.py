"""Encrypted prediction of torchvision's models at a late cut, on random weights: do the labels stay the same?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from rich.table import Table
from torch import nn

from benchmarks.command import console, run_command, words
from benchmarks.records import write_result
from splitsec.apps.predict import PredictionTask, PredictResult, predict
from splitsec.apps.samples import Samples
from splitsec.cli.common import check_writable
from splitsec.cut import SplitModel
from splitsec.errors import ConfigError
from splitsec.models.load import load_model
from splitsec.settings.setting import setting
from splitsec.tensors import write_tensors

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


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model: Annotated[str, setting("Some of the models, as NAME or NAME:CUT; all if left out.")] | None = None
    json: Annotated[Path, setting("Also write the result to this file.")] | None = None


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
            write_tensors(weights, model.state_dict())
            result = predict(
                PredictionTask(source=name, cut=cut, weights=weights), Samples(images), report=lambda _event: None
            )
        records.append(ZooRecord(name, cut, parameters, result))
    return records


def main(options: Options, arguments: Sequence[str]) -> None:
    """Predict with each model, and print one table."""
    check_writable(options.json)
    out = console()
    names = [*LATE_CUTS] if options.model is None else words(options.model)
    with out.status("") as status:
        records = run_zoo(names, status.update)
    table = Table(title=f"random weights, {INPUTS} images of noise, batch 1")
    for heading in ("model", "cut", "tail's weights", "same label", "error", "online ms", "total ms", "rounds", "MB"):
        table.add_column(heading, justify="left" if heading in ("model", "cut") else "right")
    for record in records:
        result = record.result
        table.add_row(
            record.model,
            record.cut,
            f"{record.tail_parameters / 1e6:.2f} M",
            f"{round((result.agreement or 0) * INPUTS)} of {INPUTS}",
            f"{result.max_abs_error:.0e}",
            f"{result.online_ms_median:.0f}",
            f"{result.total_ms_median:.0f}",
            str(result.rounds),
            f"{result.bytes_online / 1e6:.1f} + {result.bytes_offline / 1e6:.1f}",
        )
    out.print(table)
    write_result(options.json, records, benchmark="torchvision_models", arguments=arguments)


if __name__ == "__main__":
    run_command(
        main,
        Options,
        name="torchvision_models",
        description="torchvision's models at a late cut: are the labels the same?",
    )
