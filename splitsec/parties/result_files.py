"""The files of predictions that a client writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from splitsec.data.columns import text_tensors
from splitsec.files import whole_file
from splitsec.parties.predictions import Predictions
from splitsec.tensors import write_tensors


def save_predictions(predictions: Predictions, directory: Path) -> None:
    """Write `predictions.safetensors`: `labels`, `logits` where they are opened, and the costs as metadata.

    Of columns it also holds the ids that the rows belong to, see `splitsec.data.columns.ids_of`, and
    `predictions.csv` has them as text: id, label and one column a logit.
    """
    directory.mkdir(parents=True, exist_ok=True)
    logits = predictions.logits
    tensors = {"labels": predictions.labels} | ({} if logits is None else {"logits": logits})
    if predictions.ids:
        tensors |= text_tensors(predictions.ids)
    costs = {name: value for name, value in vars(predictions).items() if name not in ("labels", "logits", "ids")}
    # Writing costs as metadata keeps what belongs together in one file.
    write_tensors(directory / "predictions.safetensors", tensors, {"json": json.dumps(costs)})
    if not predictions.ids:
        return
    with whole_file(directory / "predictions.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        width = 0 if logits is None else logits.reshape(len(predictions.ids), -1).shape[1]
        writer.writerow(["id", "label", *(f"logit{number}" for number in range(width))])
        for row, (text, label) in enumerate(zip(predictions.ids, predictions.labels.tolist(), strict=True)):
            values = [] if logits is None else logits[row].reshape(-1).tolist()
            writer.writerow([text, label, *(f"{value:.9g}" for value in values)])
