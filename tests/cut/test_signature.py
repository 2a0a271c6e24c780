"""Models of several inputs or results, as models of one tensor each."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitsec.cut import Input, Signature, SplitModel, adapt, signature_of
from splitsec.cut.check import check_split
from splitsec.cut.signature import choose, original
from splitsec.errors import CutError
from splitsec.models.load import absolute_source, load_model


class TwoInputs(nn.Module):
    """Numbers and codes, and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        features = torch.cat([self.norm(numbers) * scale, self.table(codes)], 1)
        return {"logits": self.body(features), "features": features, "loss": None}


class Images(nn.Module):
    """An image and its age, which has no dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc = nn.Linear(33, 3)

    def forward(self, image: torch.Tensor, age: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.cat([self.conv(image).flatten(1), age.unsqueeze(1)], 1)
        return self.fc(features), features


SAMPLE = {"numbers": torch.randn(6, 5), "codes": torch.randint(0, 7, (6,))}


def test_a_model_of_two_inputs_is_cut_and_does_what_it_did() -> None:
    model = TwoInputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = SplitModel(model, "body.0", sample=SAMPLE, output="logits")
    assert split.checked
    assert {"cat", "body.0", "body.1"} <= set(split.cuts)
    assert split.whole_state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for mode in (True, False):
        model.train(mode)
        split.train(mode)
        torch.testing.assert_close(split(**SAMPLE), model(**SAMPLE)["logits"])
    packed = split.signature.pack(SAMPLE)
    assert packed.shape == (6, 6)
    torch.testing.assert_close(split(packed), model(**SAMPLE)["logits"])
    assert type(split.merge()) is TwoInputs


def test_the_model_itself_stays_as_it_is() -> None:
    model = TwoInputs()
    adapted = adapt(model, Signature.of(SAMPLE, "features"))
    assert type(model) is TwoInputs
    assert original(adapted) is model
    assert isinstance(adapted, TwoInputs)
    assert adapted.get_parameter("body.0.weight") is model.get_parameter("body.0.weight")
    assert signature_of(model) == Signature()
    assert signature_of(adapted).output == "features"
    assert adapt(model, Signature()) is model


def test_inputs_of_every_shape_come_back_as_they_were() -> None:
    values = {
        "image": torch.randn(4, 1, 6, 6),
        "age": torch.rand(4),
        "codes": torch.randint(0, 2**24, (4, 3)),
        "mask": torch.rand(4, 2) > 0.5,
    }
    signature = Signature.of(values)
    back = signature.unpack(signature.pack(values))
    assert {name: value.dtype for name, value in back.items()} == {name: v.dtype for name, v in values.items()}
    assert all(torch.equal(back[name], value) for name, value in values.items())
    assert Signature.split(f"m.py:f{signature}") == ("m.py:f", signature)
    split = SplitModel(Images(), "cat", sample={name: values[name] for name in ("image", "age")}, output="0")
    assert split.checked


def test_a_single_input_stays_as_it_is() -> None:
    signature = Signature((Input("ids", (5,), torch.int64),))
    ids = torch.randint(0, 9, (3, 5))
    assert torch.equal(signature.pack({"ids": ids}), ids)
    assert signature.sample(3).dtype == torch.int64
    assert signature.sample(3).shape == (3, 5)
    noise = signature.noise_like(ids, 100)
    assert noise.shape == (100, 5)
    assert ids.min() <= noise.min()
    assert noise.max() <= ids.max()


def test_noise_is_as_large_as_the_inputs_are_and_tells_nothing_else() -> None:
    signature = Signature.of(SAMPLE)
    packed = signature.pack({"numbers": SAMPLE["numbers"] * 64, "codes": SAMPLE["codes"]})
    noise = signature.noise_like(packed, 200)
    assert 32 <= noise[:, :5].std() <= 128
    assert set(noise[:, 5].tolist()) <= {float(code) for code in range(7)}
    assert not (noise[:, None, :5] == packed[None, :, :5]).any()


def test_a_source_says_what_a_model_takes_and_which_result_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "models.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Sum(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(2, 2)\n\n    def forward(self, a, b):\n"
        "        return self.fc(a), self.fc(b)\n"
    )
    source = f"{file}:Sum(a: 2, b: 2) -> 1"
    model = load_model(source)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), model.fc(x[:, 2:]))
    assert absolute_source(source) == source


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("m.py:f(a)", "'a' is no input of a model: write NAME: SHAPE DTYPE"),
        ("m.py:f(a: 5 text)", "dtypes are float32, .*bool"),
        ("m.py:f(a: 5, a: 4)", "names an input twice"),
    ],
)
def test_a_signature_that_cannot_be_read(source: str, reason: str) -> None:
    with pytest.raises(CutError, match=reason):
        Signature.split(source)


@pytest.mark.parametrize(
    ("names", "output", "reason"),
    [
        ("numbers", "logits", "TwoInputs needs 'codes' too, and is given numbers"),
        ("numbers codes other", "logits", "has no argument 'other'; it takes numbers, codes, scale"),
        ("numbers codes", "labels", r"returns a dict \(logits, features, loss\), in which there is no 'labels'"),
        ("numbers codes", "", r"say which is wanted behind its name, such as `MODEL -> logits`"),
    ],
)
def test_inputs_and_results_that_are_not_the_models(names: str, output: str, reason: str) -> None:
    sample = {name: SAMPLE.get(name, torch.zeros(6)) for name in names.split()}
    with pytest.raises(CutError, match=reason):
        SplitModel(TwoInputs(), "body.0", sample=sample, output=output)


def test_a_model_of_several_inputs_without_a_signature_says_how_to_write_one() -> None:
    with pytest.raises(CutError, match=r"takes 2 inputs .*MODEL\(numbers: 5, codes: 5\)"):
        SplitModel(TwoInputs(), "body.0")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"numbers": torch.zeros(6, 5)}, "the inputs are numbers; the model takes numbers, codes"),
        ({"numbers": torch.zeros(6, 4), "codes": torch.zeros(6).long()}, "'numbers' has shape 6x4, expected 6x5"),
        ({"numbers": torch.zeros(6, 5), "codes": torch.zeros(6)}, "'codes' is float32; give whole numbers"),
        ({"numbers": torch.zeros(6, 5), "codes": torch.full((6,), 2**24 + 1)}, "beyond 16777216"),
        ({"numbers": torch.zeros(6, 5), "codes": torch.full((6,), -(2**63))}, "beyond 16777216"),
    ],
)
def test_inputs_that_do_not_fit_the_signature(values: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(CutError, match=reason):
        Signature.of(SAMPLE).pack(values)


def test_hooks_of_the_model_itself_are_refused() -> None:
    model = TwoInputs()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(CutError, match="has hooks of its own and several inputs"):
        adapt(model, Signature.of(SAMPLE, "logits"))


def test_a_part_that_a_tensor_has_not_is_refused_and_no_attribute_of_it() -> None:
    with pytest.raises(CutError, match="in which there is no 'logits'"):
        SplitModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "0", sample=torch.zeros(2, 4), output="logits")
    with pytest.raises(CutError, match="nobody sees a 'logits'; give a sample"):
        SplitModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "0", output="logits")
    with pytest.raises(CutError, match="at least one value crosses"):
        SplitModel(TwoInputs(), "body.0", sample=SAMPLE, output="logits", allow_values=0)


def test_results_within_results() -> None:
    result = {"pair": (torch.zeros(1), OrderedDict(mean=torch.ones(1)))}
    assert torch.equal(choose(result, "pair.1.mean", "Model"), torch.ones(1))
    with pytest.raises(CutError, match="there is no 'pair.2'"):
        choose(result, "pair.2", "Model")


def test_control_a_segment_of_another_output_is_not_the_model() -> None:
    split = SplitModel(TwoInputs(), "body.0", sample=SAMPLE, output="logits")
    other = adapt(original(split._whole[0]), Signature.of(SAMPLE, "features"))
    with pytest.raises(CutError, match="is not the model"):
        check_split(other, split.segments, split.signature.pack(SAMPLE), cut=split.cut)
