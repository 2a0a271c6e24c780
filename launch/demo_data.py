"""Write demonstration data into the homes of two clients: `python demo_data.py LAYOUT DIRECTORY`.

scikit-learn's handwritten digits as `part.safetensors`, dealt row by row to two clients; for `vertical` the columns of
scikit-learn's breast cancer patients as `columns.csv`, ten at client-1 with the labels, twenty at client-2 without. A
client of a real run puts its own file there.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer, load_digits

from splitsec import Part

CLIENTS = ("client-1", "client-2")
HELD_OUT = 20  # rows of each client that are predicted and not trained on


def write_rows(client: str, path: Path) -> None:
    """Save every second digit, starting with the client's own position."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[CLIENTS.index(client) :: 2, None] / 16
    labels = torch.tensor(digits.target)[CLIENTS.index(client) :: 2]
    Part(images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]).save(path)


def write_columns(client: str, path: Path) -> None:
    """Write one hospital's measurements of all patients; the first hospital also has the diagnosis."""
    patients = load_breast_cancer()
    first = client == CLIENTS[0]
    columns = slice(0, 10) if first else slice(10, 30)
    names = [name.replace(" ", "_") for name in patients.feature_names[columns]]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", *(["y"] if first else []), *names])
        for row, (values, label) in enumerate(zip(patients.data[:, columns], patients.target, strict=True)):
            table.writerow([f"patient-{row:04d}", *([label] if first else []), *values])


def main(layout: str, directory: str) -> None:
    """Write each client's file, under the name that its settings have."""
    for client in CLIENTS:
        if layout == "vertical":
            write_columns(client, Path(directory) / client / "columns.csv")
        else:
            write_rows(client, Path(directory) / client / "part.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
