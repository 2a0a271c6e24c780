"""MNIST's handwritten digits: 60,000 images of 28x28, and 10,000 that are held out."""

from __future__ import annotations

from pathlib import Path

from splitsec.data.datasets.base import DATASETS, Dataset, DemoSettings
from splitsec.data.rows import Part
from splitsec.errors import ConfigError


def load(data_dir: Path | None, _seed: int) -> Part:
    """Load images float32 (N, 1, 28, 28) of mean 0 and variance 1 from torchvision's files, `MNIST/raw/...`.

    Raises:
        ConfigError: they are not in the directory.
    """
    from torchvision.datasets import MNIST

    if data_dir is None:
        raise ConfigError("MNIST is not part of the package: say where it lies: --data-dir DIR (DIR/MNIST/raw/)")
    try:
        train, test = (MNIST(str(data_dir), train=is_train, download=False) for is_train in (True, False))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"no MNIST in {data_dir}: expected the four IDX files in {data_dir}/MNIST/raw") from error
    train_images, test_images = (((split.data.float() / 255 - 0.1307) / 0.3081).unsqueeze(1) for split in (train, test))
    return Part(train_images, train.targets.long(), test_images, test.targets.long())


_MODEL = "splitsec.models:mnist_cnn"
DATASETS.register("mnist")(
    Dataset(
        load,
        {
            "horizontal": DemoSettings(_MODEL, 32, "pool", private_batch_size=600, private_learning_rate=4e-3),
            "u": DemoSettings(_MODEL, 32, "pool,fc2", private_batch_size=600, private_learning_rate=4e-3),
            "model_parts": DemoSettings("splitsec.models:mnist_half", 32),
        },
        needs_directory=True,
    )
)
