"""torchvision's models: only those are run whose late cut is known."""

from __future__ import annotations

import pytest

from benchmarks.torchvision_models import LATE_CUTS, run_zoo
from splitsec.cut import SplitModel
from splitsec.errors import ConfigError
from splitsec.models.load import load_model


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown model 'alexnet2'; choose of resnet18"):
        run_zoo(["resnet18", "alexnet2"], lambda _title: None)


def test_a_late_cut_is_a_cut_of_its_model() -> None:
    name = "squeezenet1_0"
    assert SplitModel(load_model(name), LATE_CUTS[name], check=False).cut == LATE_CUTS[name]
