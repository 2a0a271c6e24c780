"""Every layer with an encrypted form: how to make one at random, and the shape of an input for it."""

import functools
import random
from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn

Case = tuple[nn.Module, tuple[int, ...]]


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function = functools.partial(function, *args, **kwargs)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.function(x)


def _sizes(pick: random.Random, dims: int) -> tuple[int, ...]:
    return tuple(pick.randint(8, 12) for _ in range(dims))


def _conv(kind: type[nn.Module], dims: int) -> Callable[[random.Random], Case]:
    def make(pick: random.Random) -> Case:
        groups = pick.choice([1, 1, 2, 4])
        stride = pick.randint(1, 3)
        padding: Any = pick.choice([0, 1, 2, "valid", *(["same"] if stride == 1 else [])])
        kernel = tuple(pick.randint(1, 4) for _ in range(dims))
        options = {"groups": groups, "stride": stride, "padding": padding, "dilation": pick.randint(1, 2)}
        layer = kind(4, 8, kernel, bias=pick.random() < 0.5, **options)
        return layer, (pick.randint(1, 3), 4, *_sizes(pick, dims))

    return make


def _pool(kind: type[nn.Module], dims: int, **choices: list[Any]) -> Callable[[random.Random], Case]:
    def make(pick: random.Random) -> Case:
        kernel = pick.randint(2, 4)
        options = {name: pick.choice(values) for name, values in choices.items()}
        layer = kind(kernel, pick.choice([None, 1, 2, 3]), pick.randint(0, kernel // 2), **options)
        return layer, (pick.randint(1, 3), 2, *_sizes(pick, dims))

    return make


def _plain(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[random.Random], Case]:
    return lambda pick: (make(), pick.choice(shapes))


FLAT = ((3, 7), (2, 3, 5), (1, 2, 4, 3))
LAYERS: dict[str, Callable[[random.Random], Case]] = {
    "Linear": lambda pick: (
        nn.Linear(7, pick.randint(1, 9), bias=pick.random() < 0.5),
        pick.choice([(3, 7), (2, 4, 7)]),
    ),
    "Conv1d": _conv(nn.Conv1d, 1),
    "Conv2d": _conv(nn.Conv2d, 2),
    **{
        name: _plain(make, shape)
        for name, make, shape in (
            ("Conv3d", lambda: nn.Conv3d(3, 4, 2, padding=1), (2, 3, 3, 4, 3)),
            ("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 4, 3, 2), (2, 3, 5)),
            ("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 4, 2, 2), (2, 3, 4, 5)),
            ("ConvTranspose3d", lambda: nn.ConvTranspose3d(3, 2, 2, 2), (2, 3, 2, 3, 2)),
            ("BatchNorm3d", lambda: nn.BatchNorm3d(3), (2, 3, 2, 3, 2)),
            ("InstanceNorm1d", lambda: nn.InstanceNorm1d(3), (2, 3, 8)),
            ("InstanceNorm2d", lambda: nn.InstanceNorm2d(3), (2, 3, 4, 4)),
            ("InstanceNorm3d", lambda: nn.InstanceNorm3d(3), (2, 3, 2, 3, 2)),
            ("RMSNorm", lambda: nn.RMSNorm(8), (3, 8)),
            ("MaxPool3d", lambda: nn.MaxPool3d(2), (2, 3, 4, 4, 2)),
            ("AvgPool3d", lambda: nn.AvgPool3d(2), (2, 3, 4, 4, 2)),
            ("AdaptiveAvgPool3d", lambda: nn.AdaptiveAvgPool3d(2), (2, 3, 4, 4, 2)),
            ("AdaptiveMaxPool3d", lambda: nn.AdaptiveMaxPool3d(2), (2, 3, 4, 4, 2)),
            ("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), (2, 3, 3, 4)),
            ("ReflectionPad1d", lambda: nn.ReflectionPad1d(1), (2, 3, 4)),
            ("ReflectionPad2d", lambda: nn.ReflectionPad2d(1), (2, 3, 4, 4)),
            ("ReflectionPad3d", lambda: nn.ReflectionPad3d(1), (2, 2, 3, 3, 3)),
            ("ReplicationPad1d", lambda: nn.ReplicationPad1d(1), (2, 3, 4)),
            ("ReplicationPad2d", lambda: nn.ReplicationPad2d(1), (2, 3, 4, 4)),
            ("ReplicationPad3d", lambda: nn.ReplicationPad3d(1), (2, 2, 3, 3, 3)),
            ("CircularPad1d", lambda: nn.CircularPad1d(1), (2, 3, 4)),
            ("CircularPad2d", lambda: nn.CircularPad2d(1), (2, 3, 4, 4)),
            ("CircularPad3d", lambda: nn.CircularPad3d(1), (2, 2, 3, 3, 3)),
            ("ZeroPad3d", lambda: nn.ZeroPad3d(1), (2, 2, 3, 3, 3)),
            ("ConstantPad3d", lambda: nn.ConstantPad3d(1, 0.5), (2, 2, 3, 3, 3)),
            ("ChannelShuffle", lambda: nn.ChannelShuffle(2), (2, 4, 3, 3)),
            ("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), (2, 2, 4, 4)),
            ("Unfold", lambda: nn.Unfold(2), (2, 2, 4, 4)),
        )
    },
    "BatchNorm1d": _plain(lambda: nn.BatchNorm1d(5), (3, 5), (2, 5, 4)),
    "BatchNorm2d": _plain(lambda: nn.BatchNorm2d(5), (2, 5, 4, 3)),
    "LayerNorm": lambda pick: pick.choice(
        [
            (nn.LayerNorm(12), (3, 12)),
            (nn.LayerNorm((4, 5)), (2, 3, 4, 5)),
            (nn.LayerNorm(64, elementwise_affine=False), (2, 3, 64)),
        ]
    ),
    "GroupNorm": lambda pick: (nn.GroupNorm(pick.choice([1, 2, 3, 6]), 6), pick.choice([(2, 6, 5), (2, 6, 3, 4)])),
    "PReLU": lambda pick: (nn.PReLU(pick.choice([1, 3]), init=0.3), (2, 3, 5)),
    "ReLU": _plain(nn.ReLU, *FLAT),
    "ReLU6": _plain(nn.ReLU6, *FLAT),
    "LeakyReLU": lambda pick: (nn.LeakyReLU(pick.uniform(-1, 1)), (2, 3, 5)),
    "Hardtanh": lambda pick: (nn.Hardtanh(pick.uniform(-2, 0), pick.uniform(0.1, 2)), (2, 3, 5)),
    "Hardsigmoid": _plain(nn.Hardsigmoid, *FLAT),
    "Hardswish": _plain(nn.Hardswish, *FLAT),
    "Sigmoid": _plain(nn.Sigmoid, *FLAT),
    "Tanh": _plain(nn.Tanh, *FLAT),
    "Tanhshrink": _plain(nn.Tanhshrink, *FLAT),
    "Softshrink": _plain(nn.Softshrink, *FLAT),
    "Hardshrink": lambda pick: (nn.Hardshrink(pick.uniform(0.3, 1.5)), pick.choice(FLAT)),
    "Threshold": lambda pick: (nn.Threshold(pick.uniform(-0.3, 0.5), pick.uniform(-1, 1)), pick.choice(FLAT)),
    "GELU": lambda pick: (nn.GELU(pick.choice(["none", "tanh"])), pick.choice(FLAT)),
    "SiLU": _plain(nn.SiLU, *FLAT),
    "Mish": _plain(nn.Mish, *FLAT),
    "ELU": lambda pick: (nn.ELU(pick.uniform(0.3, 1.5)), pick.choice(FLAT)),
    "SELU": _plain(nn.SELU, *FLAT),
    "CELU": lambda pick: (nn.CELU(pick.uniform(0.3, 1.5)), pick.choice(FLAT)),
    "LogSigmoid": _plain(nn.LogSigmoid, *FLAT),
    "GLU": lambda pick: (nn.GLU(pick.choice([1, -1])), (2, 4, 6)),
    "Softplus": lambda pick: (nn.Softplus(pick.uniform(0.8, 2)), pick.choice(FLAT)),
    "Softmax": lambda pick: (nn.Softmax(pick.choice([1, 2, -1])), pick.choice([(2, 9, 3), (1, 2, 33)])),
    "LogSoftmax": lambda pick: (nn.LogSoftmax(-1), pick.choice([(3, 10), (2, 2, 50)])),
    "MaxPool1d": _pool(nn.MaxPool1d, 1, dilation=[1, 2], ceil_mode=[False, True]),
    "MaxPool2d": _pool(nn.MaxPool2d, 2, dilation=[1, 2], ceil_mode=[False, True]),
    "AvgPool1d": _pool(nn.AvgPool1d, 1, ceil_mode=[False, True], count_include_pad=[False, True]),
    "AvgPool2d": _pool(
        nn.AvgPool2d, 2, ceil_mode=[False, True], count_include_pad=[False, True], divisor_override=[None, None, 3, 4]
    ),
    "AdaptiveAvgPool1d": lambda pick: (nn.AdaptiveAvgPool1d(pick.randint(1, 9)), (2, 3, pick.randint(3, 9))),
    "AdaptiveAvgPool2d": lambda pick: (
        nn.AdaptiveAvgPool2d((pick.randint(1, 7), pick.choice([None, 1, 3]))),
        (2, 3, *_sizes(pick, 2)),
    ),
    "AdaptiveMaxPool1d": lambda pick: (nn.AdaptiveMaxPool1d(pick.choice([1, 2, 4])), (2, 3, 8)),
    "AdaptiveMaxPool2d": lambda pick: (nn.AdaptiveMaxPool2d((pick.choice([1, 2]), pick.choice([1, 3]))), (2, 3, 4, 6)),
    "Flatten": lambda pick: (nn.Flatten(pick.choice([1, 2])), (2, 3, 4, 2)),
    "Unflatten": _plain(lambda: nn.Unflatten(1, (2, 3)), (2, 6, 4)),
    "Dropout": _plain(nn.Dropout, *FLAT),
    "Dropout1d": _plain(nn.Dropout1d, (2, 3, 5)),
    "Dropout2d": _plain(nn.Dropout2d, (2, 3, 4, 5)),
    "AlphaDropout": _plain(nn.AlphaDropout, *FLAT),
    "Identity": _plain(nn.Identity, *FLAT),
    "ZeroPad2d": lambda pick: (nn.ZeroPad2d([pick.randint(0, 3) for _ in range(4)]), (1, 2, 3, 4)),
    "ZeroPad1d": lambda pick: (nn.ZeroPad1d([pick.randint(0, 3), 1]), (2, 3, 4)),
    "ConstantPad1d": _plain(lambda: nn.ConstantPad1d(2, 0.0), (2, 3, 4)),
    "ConstantPad2d": _plain(lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.0), (1, 2, 3, 4)),
    "UpsamplingNearest2d": _plain(lambda: nn.UpsamplingNearest2d(scale_factor=2), (1, 2, 4, 3)),
    "PixelShuffle": _plain(lambda: nn.PixelShuffle(2), (1, 8, 3, 2)),
    "Upsample": lambda pick: (nn.Upsample(scale_factor=pick.choice([2, 1.5])), (1, 2, 4, 6)),
    "MultiheadAttention": lambda pick: (
        SelfAttention(pick.choice([True, False]), pick.choice([True, False])),
        (2, pick.randint(3, 7), 12),
    ),
    "Permute": _plain(lambda: torchvision.ops.Permute([0, 3, 1, 2]), (2, 3, 4, 5)),
    "StochasticDepth": _plain(lambda: torchvision.ops.StochasticDepth(0.5, "row"), (2, 3, 4)),
    "TransformerEncoderLayer": lambda pick: (
        nn.TransformerEncoderLayer(
            12,
            pick.choice([1, 2, 3]),
            20,
            activation=pick.choice(["relu", "gelu"]),
            batch_first=True,
            norm_first=pick.random() < 0.5,
        ),
        (2, pick.randint(3, 6), 12),
    ),
}


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first, bias=bias)
        self.batch_first = batch_first

    def forward(self, x):  # type: ignore[no-untyped-def]
        if self.batch_first:
            return self.attention(x, x, x, need_weights=False)[0]
        x = x.transpose(0, 1)
        return self.attention(x, x * 0.5, x)[0].transpose(0, 1)
