"""Labels of logits, and medians of what predictions cost."""

from __future__ import annotations

import pytest
import torch

from splitsec.parties.predictions import Predictions, labels_of


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([[0.1, 0.9], [0.9, 0.1]], [1, 0]),
        # Of a single logit its sign.
        ([[0.5], [-0.5]], [1, 0]),
        ([0.5, -0.5, 0.0], [1, 0, 0]),
        # A logit for each class at every place of a picture.
        ([[[0.0, 1.0], [1.0, 0.0]]], [[1, 0]]),
    ],
)
def test_a_label_is_the_class_with_the_largest_logit(logits: list[object], labels: list[object]) -> None:
    assert labels_of(torch.tensor(logits)).tolist() == labels


def test_costs_are_medians_of_the_queries() -> None:
    predictions = Predictions(torch.tensor([0]), None, [1.0, 9.0, 2.0], [4.0, 3.0], 7, 10, 20, 30)
    assert (predictions.online_ms_median, predictions.offline_ms_median) == (2.0, 3.5)
