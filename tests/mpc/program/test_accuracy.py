"""What docs/reference/models.md promises of every layer's accuracy, on inputs that are hard on it."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.encrypted_tail import run_tail
from support.layer_cases import LAYERS, Of
from torch import nn

from splitsec.errors import RangeError, UnsupportedLayerError
from splitsec.mpc.program.program import Program

# The documented bounds, absolute: of rounding, broken lines, probabilities, and their logarithms.
ROUNDING, BENT, SOFTMAX, LOG = 2.0**-15, 1.2e-3, 5e-4, 2e-3


def _off(layer: nn.Module, x: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor, Program]:
    """How far the encrypted result is from torch's, element by element; torch's; and the program."""
    whole = nn.Sequential(layer).eval()
    with torch.no_grad():
        expected = whole(x)
    found, _, program = run_tail(whole, x, **options)
    return (found - expected).abs(), expected, program


def _hard(size: int) -> dict[str, torch.Tensor]:
    """Rows of `size` that are small, large, constant, zero, with one that stands out, at the end of the range."""
    torch.manual_seed(size)
    return {
        "normal": torch.randn(2, size),
        "small": torch.randn(2, size) * 1e-3,
        "large": (torch.randn(2, size) * 60).clamp(-250, 250),
        "constant": torch.full((2, size), -200.0),
        "zero": torch.zeros(2, size),
        "one": torch.eye(max(2, size))[:2, :size] * 30,
        "ends": torch.tensor([255.9, -255.9]).repeat(size)[: 2 * size].view(2, size),
    }


ELEMENTWISE: dict[str, tuple[nn.Module, float]] = {
    "ReLU": (nn.ReLU(), ROUNDING),
    "ReLU6": (nn.ReLU6(), ROUNDING),
    "Hardtanh": (nn.Hardtanh(-0.5, 1e-3), ROUNDING),
    "Hardtanh above zero": (nn.Hardtanh(0.5, 6.0), ROUNDING),
    "LeakyReLU(-1)": (nn.LeakyReLU(-1.0), ROUNDING),
    "Hardsigmoid": (nn.Hardsigmoid(), ROUNDING),
    "Sigmoid": (nn.Sigmoid(), 6e-4),
    "Tanh": (nn.Tanh(), BENT),
    "GELU": (nn.GELU(), 9e-4),
    "GELU(tanh)": (nn.GELU("tanh"), BENT),
    "SiLU": (nn.SiLU(), BENT),
    "Mish": (nn.Mish(), BENT),
    "ELU": (nn.ELU(), BENT),
    "Softplus": (nn.Softplus(), BENT),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_keep_to_their_bound(name: str) -> None:
    layer, most = ELEMENTWISE[name]
    x = torch.cat([torch.linspace(-255, 255, 301), torch.linspace(-6, 6, 601), torch.linspace(-1e-3, 1e-3, 21)])[None]
    assert _off(layer, x)[0].max() <= most


@pytest.mark.parametrize("slope", [1e-5, 1e-3, 0.01, -0.3])
def test_slopes_are_rounded(slope: float) -> None:
    """As documented: 2**-17 of the input, beside the rounding of every value."""
    x = torch.linspace(-255, 255, 301)[None]
    off, _, _ = _off(nn.LeakyReLU(slope), x)
    assert (off <= 2.0**-17 * x.abs() + ROUNDING).all()


@pytest.mark.parametrize("parameter", [0.01, 0.3, 10.0, 100.0])
def test_bends_grow_with_their_parameter(parameter: float) -> None:
    x = torch.linspace(-250, 250, 1001)[None]
    assert _off(nn.ELU(parameter), x)[0].max() <= max(1.0, parameter) * BENT
    assert _off(nn.Softplus(parameter), x)[0].max() <= max(1.0, 1 / parameter) * BENT


@pytest.mark.parametrize("size", [1, 2, 10, 100, 1000])
def test_softmax_keeps_to_its_bound(size: int) -> None:
    for name, x in _hard(size).items():
        print(name)
        assert _off(nn.Softmax(-1), x)[0].max() <= SOFTMAX
        assert _off(nn.LogSoftmax(-1), x)[0].max() <= LOG


@pytest.mark.parametrize("size", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_rows_are_standardised_to_what_is_documented(size: int, eps: float) -> None:
    for name, x in _hard(size).items():
        print(name)
        off, expected, _ = _off(nn.LayerNorm(size, eps=eps), x, resolved=False)
        deviation = (x.var(-1, unbiased=False) + eps).sqrt()[:, None]
        # Below the resolution of a value nothing is left to standardise. The inputs are rounded by up to 2**-17, which
        # the mean has too and its own 2**-16 besides, and moves the deviation by as much as one input.
        rounded = 2.0**-15 * (1 + expected.abs() / 4) / deviation.clamp(min=2.0**-10)
        allowed = rounded + 5e-4 * expected.abs() + ROUNDING
        # A mean that is off by the last unit is the whole deviation of a constant row, where eps is below that unit.
        constant = (x.var(-1) == 0) & (eps > 2.0**-32)
        usable = (x.var(-1) > 2.0**-30) | constant if size > 1 else torch.ones(2, dtype=torch.bool)
        assert (off <= allowed)[usable].all()


def test_calibrated_rows_keep_the_digits_of_the_product_before() -> None:
    """Standardised with as many fractional bits as fit; the control is what 16 bits of the input would leave."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64, bias=False), nn.LayerNorm(64))
    with torch.no_grad():
        layers[0].weight.mul_(0.02)
    x = torch.randn(4, 64)
    calibrated = _off(layers, x, calibration=torch.randn(32, 64), guarantee=False)[0].max()
    assert calibrated < 5e-4
    inputs = layers[0](x).detach()
    assert _off(layers[1], inputs)[0].max() > 2 * calibrated


FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...]]] = {
    "F.group_norm": (lambda x: F.group_norm(x, 2, torch.arange(8.0), torch.ones(8)), (2, 8, 5, 3)),
    "F.group_norm, no weights": (lambda x: F.group_norm(x, 4), (2, 8)),
    "F.group_norm, weight alone": (lambda x: F.group_norm(x, 8, torch.arange(8.0)), (2, 8, 3)),
    "torch.group_norm": (lambda x: torch.group_norm(x, 1, None, torch.ones(8), 1e-3), (1, 8, 3)),
    "torch.layer_norm": (lambda x: torch.layer_norm(x, (3, 2), None, torch.ones(3, 2)), (2, 3, 2)),
    "softmax of many rows that were moved": (lambda x: x.transpose(1, 2).softmax(1), (2000, 4, 3)),
    "F.prelu": (lambda x: F.prelu(x, torch.tensor([0.3, -0.2, 0.1])), (2, 3, 5)),
    "prelu of a tensor, one slope": (lambda x: x.prelu(torch.tensor([0.25])), (2, 9)),
    "square of a tensor": (lambda x: x.square(), (2, 9)),
    "clamp, ends crossed": (lambda x: x.clamp(3, -3), (2, 9)),
    "clamp, ends equal": (lambda x: torch.clamp(x, 1.0, 1.0), (2, 9)),
    "clamp to infinity": (lambda x: x.clamp(0, float("inf")) + x.clip(-float("inf"), 1.0), (2, 9)),
    "clamp beyond all values": (lambda x: x.clamp(-1e9, 1e9), (2, 9)),
    "clamp_min and clamp_max": (lambda x: torch.clamp_min(x, 0.5) + x.clamp_max(0.25), (2, 9)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_were_wrong_or_refused(name: str) -> None:
    function, shape = FUNCTIONS[name]
    torch.manual_seed(0)
    off, expected, _ = _off(Of(function), torch.randn(shape) * 4)
    assert (off <= SOFTMAX + 3e-4 * expected.abs()).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Of(lambda x: x.clamp(float("nan"), 1.0)), "clips at nan"),
        (Of(lambda x: x.clamp(min=float("inf"))), "clips to infinity alone"),
        (nn.Softplus(-1.0), "has a beta of -1.0; give it one above 0"),
        (nn.Softplus(0.0), "has a beta of 0.0"),
    ],
)
def test_arguments_without_a_meaning_are_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        _off(layer, torch.randn(2, 5))


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("options", [{"checked": True}, {"comparison": "dcf"}])
def test_windows_beyond_the_input_with_a_calibration(size: int, options: dict[str, Any]) -> None:
    """`ceil_mode` lets a window begin where without it there would be none at all."""
    torch.manual_seed(size)
    measured = {"guarantee": False, **options}
    for layer in (
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 3, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, 3, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5),
    ):
        x, likely = torch.randn(2, 2, size, size + 1), torch.randn(3, 2, size, size + 1)
        assert _off(layer, x, calibration=likely, **measured)[0].max() <= ROUNDING
    for flat in (nn.MaxPool1d(4, 2, 1, ceil_mode=True), nn.AvgPool1d(4, 3, ceil_mode=True)):
        x, likely = torch.randn(2, 2, size + 2), torch.randn(3, 2, size + 2)
        assert _off(flat, x, calibration=likely, **measured)[0].max() <= ROUNDING


class Detector(nn.Module):
    """A unit that is silent on noise, and what is made of it."""

    def __init__(self, *, compared: bool) -> None:
        super().__init__()
        self.detect, self.out, self.compared = nn.Linear(8, 4), nn.Linear(4, 3), compared
        with torch.no_grad():
            self.detect.weight.fill_(0.05)
            self.detect.bias.fill_(-0.3)
            self.out.weight.fill_(30.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.out(torch.relu(self.detect(x)))
        return torch.relu(made - 1) if self.compared else made


def test_the_checked_mode_does_not_call_a_right_result_wrong() -> None:
    """Nothing compares a last layer's values, so that they may be larger than in calibration.

    The control: a ReLU does, and so does the label.
    """
    torch.manual_seed(0)
    x, likely = torch.full((2, 8), 2.2), torch.randn(4, 8) * 0.3
    options: dict[str, Any] = {"calibration": likely, "guarantee": False, "checked": True}
    off, expected, program = _off(Detector(compared=False), x, **options)
    assert not program.guaranteed
    assert expected.min() > 40
    assert off.max() < 1e-2
    with pytest.raises(RangeError, match="layer 'sub' overflowed|layer '0.out' overflowed|layer 'out' overflowed"):
        _off(Detector(compared=True), x, **options)
    with pytest.raises(RangeError, match="overflowed"):
        _off(Detector(compared=False), x, **options, reveal="label")


@pytest.mark.slow
def test_every_layer_in_every_mode_on_hard_inputs() -> None:
    """Random layers, modes and inputs; a seed that fails is printed."""
    for _ in range(150):
        seed = random.randrange(1 << 31)
        pick = random.Random(seed)
        torch.manual_seed(seed)
        name = pick.choice(list(LAYERS))
        layer, shape = LAYERS[name](pick)
        shape = (pick.choice([1, 2, 32]), *shape[1:]) if name not in ("Flatten", "Unflatten") else shape
        x = torch.randn(shape) * pick.choice([0.0, 0.05, 1.0, 20.0]) + pick.choice([0.0, 0.0, 3.0, -20.0])
        options: dict[str, Any] = {"comparison": pick.choice(["tables", "dcf"]), "checked": pick.random() < 0.3}
        options["resolved"] = False
        if pick.random() < 0.5:
            spread = x.abs().max().clamp(max=20)
            options |= {"calibration": spread * torch.randn(4, *shape[1:]) + x[:1], "guarantee": False}
        print(f"seed {seed}: {name} {layer} {shape} {sorted(options)}")
        try:
            off, expected, _ = _off(layer, x.clamp(-250, 250), **options)
        except RangeError as error:
            # Refused before it runs, for rows that are too large, is no wrong result.
            if "in calibration: too much" not in str(error):
                raise
            continue
        # Transformers have two norms, whose rows may be small, and a softmax.
        most = 5e-2 if name in ("TransformerEncoderLayer", "MultiheadAttention", "LayerNorm", "GroupNorm") else 5e-3
        # A gated unit multiplies a value by a sigmoid, and so what that is off by.
        most += 1e-3 * x.abs().max().item() if name == "GLU" else 0.0
        assert (off <= most + 1e-3 * expected.abs()).all()
