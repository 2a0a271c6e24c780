"""What both halves of a step use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitsec.errors import MessageError
from splitsec.training.step import (
    EpochBook,
    StepResult,
    call_with_rows,
    check_labels,
    check_logits,
    make_optimizer,
    mean_of,
    segment_digest,
    set_rate,
)


def test_a_digest_tells_values_apart_and_equal_ones_not() -> None:
    layer = nn.Linear(2, 2)
    before = segment_digest(layer)
    assert segment_digest(layer) == before
    with torch.no_grad():
        layer.weight[0, 0] += 1e-6
    assert segment_digest(layer) != before


def test_a_batch_without_rows_has_an_output_without_rows() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert call_with_rows(module, torch.zeros(0, 2, 2)).shape == (0, 3)
    assert call_with_rows(module, torch.zeros(5, 2, 2)).shape == (5, 3)


def test_a_module_that_writes_in_place_does_not_change_the_batch() -> None:
    batch = torch.full((2, 2), -1.0)
    assert call_with_rows(nn.ReLU(inplace=True), batch).tolist() == [[0.0, 0.0]] * 2
    assert batch.tolist() == [[-1.0, -1.0]] * 2


def test_labels_beyond_the_classes_are_refused() -> None:
    check_labels(torch.tensor([0, 2]), 3)
    check_labels(torch.tensor([], dtype=torch.int64), 3)
    for labels in ([0, 3], [-1, 2]):
        with pytest.raises(MessageError, match="but the model has 3 classes"):
            check_labels(torch.tensor(labels), 3)
    with pytest.raises(MessageError, match="expected one row of logits a sample"):
        check_logits(torch.zeros(2, 3, 4), torch.tensor([0, 1]))


def test_figures_of_an_epoch_are_means_over_its_samples() -> None:
    book = EpochBook()
    assert (book.loss, book.accuracy) == (0.0, 0.0)
    nothing = torch.empty(0)
    book.add([(StepResult(1.0, 1, nothing), 1), (StepResult(2.0, 3, nothing), 3)])
    assert (book.loss, book.accuracy) == (1.75, 1.0)
    assert mean_of(torch.tensor([])) == 0.0


def test_nothing_to_train_needs_no_optimizer() -> None:
    assert make_optimizer([], 0.1) is None
    set_rate(None, 0.5)
    optimizer = make_optimizer(list(nn.Linear(1, 1).parameters()), 0.1)
    assert optimizer is not None
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
