"""Steps that run through CrypTen's functions instead of our protocols: a reference for results and for speed.

Each is an operation of ours by another name (`crypten.relu`), which differs in how it runs on shares: on CrypTen's
tensors, with its approximations (B. Knott et al., "CrypTen: secure multi-party computation meets machine learning",
NeurIPS 2021), over our transport and dealer, and with our comparison and truncation (`crypten_bridge`). Weights are
shares too, of which the client's are zeros: what is opened of them is masked by a triple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.operations import arithmetic, functions, layers, pooling, roots, selecting  # noqa: F401
from splitsec.mpc.program.operations.base import OPERATIONS, Running, gives_precision, takes_precision
from splitsec.mpc.program.program import Program, Step
from splitsec.mpc.protocols.broken_lines import name_of

PREFIX = "crypten."
# Steps that move elements, add them up or multiply them by public numbers are the same in CrypTen.
_LOCAL = (
    *("add", "affine", "sum", "reshape", "permute", "index", "gather", "pad", "expand", "cat", "argmax"),
    *("avg_pool2d", "adaptive_avg_pool2d", "at_least_zero"),
)


@dataclass(frozen=True)
class _Call:
    """What one of CrypTen's forms gets: a step, its inputs and the server's weights as CrypTen's tensors."""

    step: Step
    inputs: Sequence[Any]
    weight: Any = None
    bias: Any = None

    @property
    def x(self) -> Any:
        """Return the first input."""
        return self.inputs[0]


def _standardise(call: _Call) -> Any:
    centred = call.x - call.x.mean(-1, keepdim=True)
    return centred * ((centred * centred).mean(-1, keepdim=True) + call.step.low).inv_sqrt()


def _max_pool(call: _Call) -> Any:
    step = call.step
    pooled = call.x.max_pool2d(
        step.kernel, stride=step.stride, padding=step.padding, dilation=step.dilation, ceil_mode=step.ceil
    )
    return pooled.relu() if step.zero else pooled


def _conv(call: _Call) -> Any:
    step = call.step
    product = call.x.conv2d(
        call.weight, stride=step.stride, padding=step.padding, dilation=step.dilation, groups=step.groups
    )
    return product + call.bias.view(1, -1, 1, 1)


def _curve(call: _Call) -> Any:
    name = name_of(call.step.curves[0])
    if name not in _CURVES:
        raise UnsupportedLayerError(f"layer '{call.step.name}' has no form in CrypTen; use the engine splitsec")
    return _CURVES[name](call.x)


_CURVES: dict[str, Callable[[Any], Any]] = {
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    # CrypTen's own approximation of erf diverges beyond 2.
    "gelu": lambda x: x * (x * 1.702).sigmoid(),
    "gelu_tanh": lambda x: x * (x * 1.702).sigmoid(),
    "silu": lambda x: x * x.sigmoid(),
    "log": lambda x: x.log(),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "exp_eighth": lambda x: (x * 0.125).exp(),
}
_FORMS: dict[str, Callable[[_Call], Any]] = {
    "relu": lambda call: call.x.relu(),
    "leaky_relu": lambda call: call.x * call.step.slope + call.x.relu() * (1 - call.step.slope),
    "hardtanh": lambda call: (call.x - call.step.low).relu() - (call.x - call.step.high).relu() + call.step.low,
    "max_pool2d": _max_pool,
    "curve": _curve,
    "softmax": lambda call: call.x.softmax(call.step.dim),
    "log_softmax": lambda call: call.x.log_softmax(call.step.dim),
    "standardise": _standardise,
    "inverse_root": lambda call: call.x.inv_sqrt(),
    "mul": lambda call: call.inputs[0] * call.inputs[1],
    "matmul": lambda call: call.inputs[0].matmul(call.inputs[1]),
    "linear": lambda call: call.x.matmul(call.weight.transpose(0, 1)) + call.bias,
    "conv2d": _conv,
    "scale": lambda call: call.x * call.weight + call.bias,
    "shift": lambda call: call.x + call.bias,
}


def _run(running: Running) -> torch.Tensor:
    # Loading CrypTen takes a second, and only this engine needs it.
    from splitsec.mpc import crypten_bridge

    step, precision = running.step, running.context.precision
    with crypten_bridge.running(running.context):
        weight = bias = None
        if step.weight:
            weight, bias = (crypten_bridge.from_share(share, precision) for share in _weights(running))
        inputs = [crypten_bridge.from_share(value.share, precision) for value in running.inputs]
        form = _FORMS[step.op.removeprefix(PREFIX)]
        share = crypten_bridge.share_of(form(_Call(step, inputs, weight, bias)))
    return share.reshape(step.shape)


def _weights(running: Running) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this party's shares of weight and bias: the server's own, zeros at the client and in a plan."""
    step, own = running.step, running.weights
    shape = _bias_shape(step)
    if own is None or not running.serves:
        return torch.zeros(step.weight, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    return own.weight, own.bias.reshape(shape)


def _bias_shape(step: Step) -> tuple[int, ...]:
    if step.op.endswith(("linear", "conv2d")):
        return (step.weight[0],)
    return step.shape[1:] if step.op.endswith("shift") else step.weight


def through_crypten(steps: Sequence[Step]) -> list[Step]:
    """Return steps that run through CrypTen where it has a form.

    Raises:
        UnsupportedLayerError: it has none (names the layer).
    """
    result = []
    for step in steps:
        if step.op in _LOCAL:
            result.append(step)
        elif PREFIX + step.op in OPERATIONS and (step.op != "curve" or name_of(step.curves[0]) in _CURVES):
            # CrypTen's products take both factors with the same fractional bits.
            result.append(msgspec.structs.replace(step, op=PREFIX + step.op, digits=0))
        else:
            raise UnsupportedLayerError(
                f"layer '{step.name}' ({step.op}) has no form in CrypTen; use the engine splitsec"
            )
    return result


def runs_through_crypten(program: Program) -> bool:
    """Say whether a program was compiled for CrypTen's functions: none of its steps has another form there."""
    names = [step.op for step in program.steps]
    return any(name.startswith(PREFIX) for name in names)


def _registered() -> None:
    for op in _FORMS:
        operation = OPERATIONS.get(op)
        OPERATIONS.register(PREFIX + op)(replace(operation, run=_run, takes=takes_precision, gives=gives_precision))


_registered()
