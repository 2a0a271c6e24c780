from pathlib import Path

import pytest

from splitsec.cut import SplitModel, is_u
from splitsec.cut.joined import VerticalModel
from splitsec.data.datasets import DATASETS, demo_settings, load_columns, load_dataset
from splitsec.errors import ConfigError
from splitsec.models.load import load_model

DEMOS = [(name, layout) for name in DATASETS.names() for layout in DATASETS.get(name).demos]


@pytest.mark.parametrize(("name", "layout"), DEMOS)
def test_the_demos_model_exists_and_has_the_cut_of_its_layout(name: str, layout: str) -> None:
    demo = demo_settings(name, layout)
    model = load_model(demo.model)
    assert isinstance(model, VerticalModel) == (layout == "vertical")
    assert bool(demo.cut) == (layout in ("horizontal", "u"))
    if demo.cut:
        SplitModel(model, demo.cut, check=False)
        assert is_u(demo.cut) == (layout == "u")


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if DATASETS.get(name).needs_directory])
def test_a_dataset_of_files_says_how_to_name_their_directory(name: str) -> None:
    with pytest.raises(ConfigError, match="--data-dir DIR"):
        DATASETS.get(name).load(None, 0)


def test_a_dataset_is_refused_by_name_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no dataset 'cats'; choose one of: breast, credit, digits, mnist"):
        load_dataset("cats", None, 0)
    with pytest.raises(ConfigError, match="a vertical run has no dataset 'digits'; choose one of: breast, credit"):
        demo_settings("digits", "vertical")


def test_rows_and_columns_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'breast' holds columns"):
        load_dataset("breast", tmp_path, 0)
    with pytest.raises(ConfigError, match="'digits' holds rows"):
        load_columns("digits", tmp_path, 0)
