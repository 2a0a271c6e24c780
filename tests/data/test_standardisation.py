"""Columns on the scale of the rows that a front was trained on."""

from dataclasses import replace

import pytest
import torch

from splitsec.data.columns import Columns
from splitsec.data.standardisation import Scaling, Standardisation
from splitsec.errors import ConfigError


def test_standardised_by_the_rows_for_training_alone() -> None:
    values = torch.tensor([[1.0, 7.0], [3.0, 7.0], [100.0, 7.0]])
    columns = Columns(("a", "b", "c"), values).standardised(2)
    assert columns.values.tolist() == [[-1.0, 0.0], [1.0, 0.0], [98.0, 0.0]]
    assert columns.take([2, 0]).ids == ("c", "a")
    assert Columns(("a", "b", "c"), values).constant == ("2",)


def test_huge_columns_are_standardised_too() -> None:
    """The control: in 32 bits the mean of such numbers is infinite."""
    values = torch.tensor([[1e38], [3e38]])
    assert torch.isinf(values.mean(0)).all()
    torch.testing.assert_close(Columns(("a", "b"), values).standardised(2).values, torch.tensor([[-1.0], [1.0]]))


def test_later_people_have_the_scale_of_the_trained_front() -> None:
    trained = Columns(("a", "b"), torch.tensor([[1.0, 10], [3, 30]]), None, ("age", "sum")).standardised(2)
    scale = trained.scaling.given
    assert scale is not None
    later = Columns(("x", "y"), torch.tensor([[20.0, 2], [40, 4]]), None, ("sum", "age"))
    mended = replace(later, scaling=Scaling(given=scale)).standardised(0)
    assert mended.names == ("age", "sum")
    torch.testing.assert_close(mended.values, torch.tensor([[0.0, 0], [2, 2]]))
    # The control: by their own mean and spread they become something else.
    assert not torch.allclose(later.standardised(2).values, mended.values)
    other = replace(later, names=("sum", "height"), scaling=Scaling(given=scale))
    with pytest.raises(
        ConfigError, match="trained with the columns 'age', 'sum'; this data lacks 'age' and has 'height'"
    ):
        other.standardised(2)


def test_codes_stay_as_they_are() -> None:
    columns = Columns(("a", "b"), torch.tensor([[1.0, 2], [3, 0]]), None, ("age", "kind"))
    ready = replace(columns, scaling=Scaling(codes=("kind",))).standardised(2)
    assert ready.values.tolist() == [[-1.0, 2.0], [1.0, 0.0]]
    off = replace(columns, scaling=Scaling(standardise=False)).standardised(2)
    assert torch.equal(off.values, columns.values)
    whole = replace(columns, scaling=Scaling(whole=True)).standardised(2)
    assert whole.values.dtype == torch.int64
    assert whole.take([1]).values.tolist() == [[3, 0]]
    with pytest.raises(ConfigError, match="codes: there is no column 'sort'; there are 'age', 'kind'"):
        replace(columns, scaling=Scaling(codes=("sort",))).standardised(2)
    for bad in (0.5, -1.0):
        wrong = Columns(("a", "b"), torch.tensor([[1.0, bad], [3, 0]]), None, ("age", "kind"), Scaling(codes=("kind",)))
        with pytest.raises(
            ConfigError, match=f"column 'kind' holds codes that the front looks up, but there is {bad:g}"
        ):
            wrong.standardised(2)


def test_a_standardisation_survives_its_file_to_the_bit() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1, 1e6])
    standardisation = Standardisation.of(values, ("a", "b", "c"))
    back = Standardisation.from_json(standardisation.as_json())
    assert torch.equal(back.apply(values), standardisation.apply(values))
    for broken in (
        {},
        {**standardisation.as_json(), "spread": [1, 0, 1]},
        {**standardisation.as_json(), "mean": [1]},
        {"names": 3},
    ):
        with pytest.raises(ConfigError, match="cannot be read"):
            Standardisation.from_json(broken)


def test_scalings_that_do_the_same_have_the_same_description() -> None:
    scale = Standardisation.none(("age", "sum"))
    texts = {Scaling(codes=codes).described for codes in (("a", "b"), ("b", "a"))}
    assert len(texts) == 1
    assert len({Scaling().described, Scaling(standardise=False).described, Scaling(given=scale).described}) == 3
