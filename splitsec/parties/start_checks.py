"""What a party looks at on its own machine before it speaks with another."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from splitsec.data.row_checks import check_classes, output_width
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.models.load import load_model
from splitsec.settings.parties import ClientConfig
from splitsec.tensors import dtype_name, read_tensors

log = logging.getLogger(__name__)
_CALIBRATION = "write one with safetensors.torch.save_file({'activations': activations}, PATH)"


def check_directories(base: Path, **directories: str | None) -> None:
    """Make the directories that settings name; raises `ConfigError`, naming the setting, where that cannot be done.

    After hours of training is too late to find that there is nowhere to write.
    """
    for name, directory in directories.items():
        if directory is None:
            continue
        path = base / directory
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ConfigError(f'{name} = "{directory}" is a file, and must be a directory to write into') from None
        except OSError as error:
            raise ConfigError(f'{name} = "{directory}" cannot be made a directory: {error.strerror}') from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigError(f'{name} = "{directory}" is a directory that this user cannot write to')


_OWNER = ".splitsec-party"


def claim_directories(base: Path, party: str, **directories: str | None) -> None:
    """Note in each directory whose it is.

    Parties whose files lie beside each other easily name one directory, and would overwrite what the other saved.

    Raises:
        ConfigError: it is that of another party; names the setting, the party and what to do.
    """
    for name, directory in directories.items():
        if directory is None:
            continue
        note = base / directory / _OWNER
        try:
            # Of parties that start at the same moment only one can make it.
            with note.open("x", encoding="utf-8") as file:
                file.write(party)
        except FileExistsError:
            owner = note.read_text(encoding="utf-8", errors="replace").strip()[:64]
            if owner not in ("", party):
                raise ConfigError(
                    f'{name} = "{directory}" is the directory of {owner}, and parties that share one overwrite each '
                    f'other\'s files: give {party} its own, such as {name} = "{directory}-{party}" (or remove '
                    f"{note.name} in it, if {owner} does not need it any more)"
                ) from None
        except OSError as error:
            raise ConfigError(f'{name} = "{directory}" cannot be written to: {error.strerror}') from None


def load_calibration(path: Path) -> torch.Tensor:
    """Return the activations of a calibration file, float32 (N, ...); raises `ConfigError` for another file."""
    calibration = read_tensors(path, "calibration", _CALIBRATION)
    if "activations" not in calibration:
        raise ConfigError(f"{path} lacks 'activations'; {_CALIBRATION}")
    activations = calibration["activations"]
    if not activations.is_floating_point() or activations.dim() < 2 or not activations.numel():
        raise ConfigError(
            f"activations in {path} are {dtype_name(activations)} {tuple(activations.shape)}; give float32 (N, ...)"
        )
    if not torch.isfinite(activations).all():
        raise ConfigError(f"activations in {path} hold a value that is not a finite number")
    return activations.float()


def check_own_data(part: Part, config: ClientConfig, base: Path) -> None:
    """Compare a client's rows with the whole model, which it has in its file, and with what its settings ask for.

    Raises:
        ConfigError: a label is none of the model's classes; names the row.
    """
    source = base / config.data
    if config.predictions is not None and config.predictions > len(part.test_images):
        log.warning(
            "%s: predictions = %d, but %s has %d test rows: only these are predicted",
            config.name,
            config.predictions,
            source,
            len(part.test_images),
        )
    classes = _classes(config.model, part.train_images, f"{source}: train_images")
    if classes is not None:
        for split in ("train", "test"):
            check_classes(getattr(part, f"{split}_labels"), classes, f"{source}: {split}_labels")


def _classes(source: str, images: torch.Tensor, what: str) -> int | None:
    """How many outputs a model has, tried without its values; None where that cannot be told, and the server will.

    Raises:
        ConfigError: a layer cannot take the images; names it.
    """
    try:
        with torch.device("meta"):
            model = load_model(source)
            rows = torch.empty_like(images[:2], device="meta")
    except Exception as error:
        # It needs values while it is built; whoever builds it whole says what is wrong with it.
        log.debug("the model's classes are not known beforehand: %s", error)
        return None
    return output_width(model, rows, what)
