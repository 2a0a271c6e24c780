"""A client looks at its columns with its front before it joins."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from splitsec.data.column_checks import check_classes, fitted
from splitsec.data.columns import Columns
from splitsec.data.standardisation import Scaling
from splitsec.errors import ConfigError

IDS = ("a", "b", "c", "d")


class Mixed(nn.Module):
    """Numbers and one column of codes."""

    def __init__(self, rows: int = 3) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(rows, 4), nn.Linear(2 + 4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(torch.cat([x[:, :2], self.table(x[:, 2].long())], 1))
        return result


def _codes() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))


def _columns(*rows: tuple[float, ...], **options: object) -> Columns:
    names = ("c", "d", "kind")[-len(rows[0]) :]
    return Columns(IDS[: len(rows)], torch.tensor(rows), None, names, Scaling(**options))  # type: ignore[arg-type]


NUMBERS = _columns((1.0, 2, 0), (2, 5, 1), (3, 1, 2), (9, 9, 1))


def test_columns_that_fit_stay_as_they_are() -> None:
    columns, features = fitted(NUMBERS, nn.Linear(3, 7))
    assert columns is NUMBERS
    assert features == 7


def test_codes_are_never_standardised(caplog: pytest.LogCaptureFixture) -> None:
    """By themselves where they are all that the front takes, else when it is said which they are. The control: a
    standardised code is another code, or none."""
    columns, _ = fitted(_columns((0.0, 4), (3, 1)), _codes())
    assert columns.scaling.whole
    assert columns.standardised(2).values.tolist() == [[0, 4], [3, 1]]
    assert columns.standardised(2).values.dtype == torch.int64
    assert "stay the whole numbers" in caplog.text
    with pytest.raises(
        ConfigError, match=r"embedding \('table'\), whose codes must not be standardised: name .* codes ="
    ):
        fitted(NUMBERS, Mixed())
    for scaling in (Scaling(codes=("kind",)), Scaling(standardise=False)):
        ready, features = fitted(replace(NUMBERS, scaling=scaling), Mixed())
        assert features == 8
        assert ready.standardised(4).values[:, 2].tolist() == [0, 1, 2, 1]
    wrong = NUMBERS.standardised(4).values[:, 2]
    assert not torch.equal(wrong, wrong.round())


@pytest.mark.parametrize(
    ("columns", "front", "reason"),
    [
        (
            _columns((0.0, 7), (3, 1)),
            _codes(),
            "'0' has 5 rows, counted from 0, and the largest codes are 3 in 'd', 7 in",
        ),
        (_columns((0.0, -1), (3, 1)), _codes(), "column 'kind' holds codes that the front looks up, but there is -1"),
        (_columns((0.0, 0.5), (3, 1)), _codes(), "column 'kind' holds codes that the front looks up, but there is 0.5"),
        (replace(NUMBERS, scaling=Scaling(codes=("kind",))), Mixed(2), "'table' has 2 rows"),
        (NUMBERS, nn.Linear(2, 4), "cannot take the 3 columns (c, d, kind) (its first linear layer takes 2)"),
        (NUMBERS, nn.Unflatten(1, (3, 1)), "activations that are joined have shape (rows, features)"),
        (
            Columns(IDS[:2], torch.zeros(2, 0), torch.tensor([0, 1])),
            nn.Linear(2, 3),
            "labels and no columns: then the front of this client is nn.Identity()",
        ),
    ],
)
def test_what_the_front_cannot_take_is_named(columns: Columns, front: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fitted(columns, front)
    assert reason in str(caught.value)


def test_weights_that_are_not_finite_are_found() -> None:
    front = nn.Linear(3, 4)
    with torch.no_grad():
        front.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="activation of row 1 is not finite"):
        fitted(NUMBERS, front)


def test_the_front_is_left_as_it_was() -> None:
    front = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    front.train()
    before = {name: value.clone() for name, value in front.state_dict().items()}
    fitted(NUMBERS, front)
    assert front.training
    assert all(torch.equal(value, before[name]) for name, value in front.state_dict().items())


def test_a_column_that_says_nothing_is_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    fitted(_columns((1.0, 2, 7), (2, 5, 7)), nn.Linear(3, 7))
    assert caplog.messages == ["column 'kind' has the same value in all rows, so nothing can be learned from it"]


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (
            nn.Sequential(nn.ReLU(), nn.Linear(16, 4)),
            "labels hold 4 in row 2 (counted from 0), but the model has 4 classes, from 0 to 3",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)),
            "labels hold 3 in row 1 and 1 more row (counted from 0), but the model has 2 classes",
        ),
        (nn.Sequential(nn.ReLU(), nn.Linear(16, 1)), "one number a person, but training is for classes"),
        (nn.Sequential(nn.ReLU(), nn.Linear(16, 5)), ""),
        (nn.ReLU(), ""),
    ],
)
def test_labels_beyond_the_classes(tail: nn.Module, reason: str) -> None:
    labels = torch.tensor([0, 3, 4])
    if not reason:
        check_classes(labels, tail)
        return
    with pytest.raises(ConfigError) as caught:
        check_classes(labels, tail)
    assert reason in str(caught.value)
