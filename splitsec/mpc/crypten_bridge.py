"""The one module that touches CrypTen's process-wide state.

CrypTen keeps one communicator, one provider of randomness and one set of generators for the whole process. They
are replaced, once, by stand-ins that forward to the session of the thread's `running` block, so its functions talk
over our sockets and draw on our dealer. Its tensors are `SharedTensor`, a type of ours registered with CrypTen: the
same ring and encoding, with our protocols for comparisons, so that all of CrypTen's functions (exp, reciprocal,
softmax, layer norm, GELU), its modules and its autograd work on it. What cannot be made safe is refused: CrypTen's own
providers (with `TFP` rank 0 knows all masks), its Mersenne Twister generators, and every function that would put pickle
on a wire.
"""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from splitsec.errors import InsecureProviderError, MessageError, RandomnessError, UnsupportedLayerError
from splitsec.mpc.beaver import BinaryTriple, RandomBit, SquarePair, Triple
from splitsec.mpc.context import Context
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.protocols.relu import relu
from splitsec.mpc.protocols.sign import at_least_zero
from splitsec.mpc.protocols.truncate import truncate


def _import_crypten() -> Any:
    # CrypTen 0.4.1 registers an ONNX operator through a module that newer torch no longer has. We never go through
    # ONNX, so a stand-in that registers nothing is enough.
    name = "torch.onnx.symbolic_registry"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.register_op = lambda *_args, **_kwargs: None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import crypten
        import crypten.mpc.primitives.arithmetic
        import crypten.mpc.primitives.binary
    return crypten


crypten = _import_crypten()
# Each thread has a session of its own, so that a server can hold several.
_local = threading.local()
PROVIDER = "DEALER"


@contextmanager
def running(context: Context, *, grad: bool = False) -> Iterator[None]:
    """Let CrypTen's functions work in `context`, in this thread, until the block ends.

    Args:
        grad: keep CrypTen's autograd tape, for training on shares.
    """
    if getattr(_local, "context", None) is not None:
        raise RandomnessError("this thread is running CrypTen in another session; use a thread for each session")
    if crypten.config.cfg.encoder.precision_bits != context.precision:
        crypten.config.cfg.encoder.precision_bits = context.precision
    _local.context, _local.grad = context, grad
    try:
        yield
    finally:
        _local.context, _local.grad = None, False


def _context() -> Context:
    context: Context | None = getattr(_local, "context", None)
    if context is None:
        raise RandomnessError("CrypTen was used outside a splitsec session; wrap the call in a session")
    return context


@crypten.CrypTensor.register_cryptensor("splitsec")
class SharedTensor(crypten.mpc.MPCTensor):  # type: ignore[misc, name-defined]  # CrypTen has no types
    """CrypTen's shared tensor with our protocols: comparisons in four rounds, ReLU as one selection.

    Values are below 2**62 in magnitude as ring elements, where CrypTen's own comparison would take one bit more.
    """

    @staticmethod
    def new(*args: Any, **options: Any) -> SharedTensor:
        """Make a shared tensor; CrypTen calls it with the arguments of the constructor."""
        return SharedTensor(*args, **options)

    @staticmethod
    def from_shares(share: torch.Tensor, precision: int | None = None, ptype: Any = None) -> SharedTensor:
        """Make a tensor over this party's int64 share with `precision` fractional bits."""
        kind = crypten.mpc.arithmetic if ptype is None else ptype
        result = SharedTensor([])
        result._tensor = kind.to_tensor().from_shares(share, precision=precision)
        result.ptype = kind
        return result

    def clone(self) -> SharedTensor:
        """Return a copy with a share of its own."""
        result = self.shallow_copy()
        result._tensor = self._tensor.clone()
        return result

    def shallow_copy(self) -> SharedTensor:
        """Return another tensor over the same share."""
        result = SharedTensor([])
        result._tensor, result.ptype = self._tensor, self.ptype
        return result

    def relu(self) -> SharedTensor:
        """Return max(x, 0), exact."""
        result = self.clone()
        result.share = relu(_context(), self.share)
        return result

    def _ltz(self) -> SharedTensor:
        if self.ptype != crypten.mpc.arithmetic:
            return SharedTensor.from_shares(self.to(crypten.mpc.arithmetic).share)._ltz()
        return _bits(1, -at_least_zero(_context(), self.share))

    def _eqz_2PC(self) -> SharedTensor:
        both = at_least_zero(_context(), torch.stack([self.share, -self.share]))
        return _bits(-1, both[0] + both[1])


def _bits(constant: int, share: torch.Tensor) -> SharedTensor:
    """Add a public constant to shares of 0 or 1 without fractional bits."""
    return SharedTensor.from_shares(share + constant if _context().rank == 0 else share, precision=0)


def from_share(share: torch.Tensor, precision: int) -> Any:
    """Make a `SharedTensor` over this party's int64 share with `precision` fractional bits."""
    return SharedTensor.from_shares(share, precision=precision)


def share_of(tensor: Any) -> torch.Tensor:
    """Return this party's int64 share of a `SharedTensor`."""
    share: torch.Tensor = tensor._tensor.share
    return share


class _Communicator:
    """CrypTen's `Communicator` over the active session, for two parties."""

    def get_rank(self) -> int:
        return _context().rank

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, tensor: Any, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        parts: list[torch.Tensor] = list(tensor) if batched else [tensor]
        both = zip(parts, _context().exchange([part.contiguous() for part in parts]), strict=True)
        xor = op == torch.distributed.ReduceOp.BXOR
        result = [own ^ other if xor else own + other for own, other in both]
        return result if batched else result[0]

    def reduce(self, tensor: Any, dst: int, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        parts: list[torch.Tensor] = list(tensor) if batched else [tensor]
        xor = op == torch.distributed.ReduceOp.BXOR
        result = []
        for part in parts:
            other = _context().collect(part.contiguous(), dst)
            result.append(part if other is None else part ^ other if xor else part + other)
        if self.get_rank() != dst:
            return None
        return result if batched else result[0]

    def __getattr__(self, name: str) -> NoReturn:
        raise UnsupportedLayerError(f"CrypTen's communicator call '{name}' has no secure form here")


class _DealerProvider:
    """CrypTen's `TupleProvider`, served from the active session's plan."""

    NAME = PROVIDER

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, device: Any = None, **options: Any
    ) -> tuple[Any, Any, Any]:
        known = {name: _as_tuple(options[name]) for name in ("stride", "padding", "dilation") if name in options}
        unknown = set(options) - {"stride", "padding", "dilation", "groups"}
        if unknown:
            raise UnsupportedLayerError(f"{op} with {', '.join(sorted(unknown))} has no encrypted form")
        dims = {"conv1d": 1, "conv2d": 2, "conv_transpose1d": 1, "conv_transpose2d": 2}.get(op, 1)
        item = Triple(
            op=op,  # type: ignore[arg-type]
            left=tuple(size0),
            right=tuple(size1),
            stride=_spread(known.get("stride", (1,)), dims),
            padding=_spread(known.get("padding", (0,)), dims),
            dilation=_spread(known.get("dilation", (1,)), dims),
            groups=int(options.get("groups", 1)),
        )
        a, b, c = _context().take(item)
        return self._arithmetic(a), self._arithmetic(b), self._arithmetic(c)

    def square(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        r, r2 = _context().take(SquarePair(tuple(size)))
        return self._arithmetic(r), self._arithmetic(r2)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: Any = None
    ) -> tuple[Any, Any, Any]:
        parts = _context().take(BinaryTriple(tuple(size0), tuple(size1)))
        a, b, c = (crypten.mpc.primitives.BinarySharedTensor.from_shares(part) for part in parts)
        return a, b, c

    def B2A_rng(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        binary, arithmetic = _context().take(RandomBit(tuple(size)))
        return self._arithmetic(arithmetic), crypten.mpc.primitives.BinarySharedTensor.from_shares(binary)

    def wrap_rng(self, size: Sequence[int], device: Any = None) -> NoReturn:
        raise UnsupportedLayerError("wrap counting is not used between two parties")

    @staticmethod
    def _arithmetic(share: torch.Tensor) -> Any:
        return crypten.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=0)


class _RefusedProvider:
    """Stands where CrypTen keeps a provider of its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        raise InsecureProviderError(
            f"CrypTen's provider '{self._name}' is not available under splitsec: with TFP rank 0 draws all masks and "
            "could open every secret, TTP uses a statistical generator; randomness comes from the splitsec dealer"
        )


class _RefusedGenerators(dict[str, Any]):
    """Stands where CrypTen keeps its Mersenne Twister generators."""

    def __getitem__(self, key: str) -> NoReturn:
        raise InsecureProviderError("CrypTen's generators are not cryptographic; splitsec does not use them")


def _refuse_generator(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise InsecureProviderError("CrypTen's generators are not cryptographic; splitsec does not use them")


def _zero_shares(size: tuple[Any, ...]) -> torch.Tensor:
    # Both parties know this mask: it hides a party's input from the dealer and the wire only. The other party's share
    # is the mask itself, so it carries nothing of the input.
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    return _context().common(shape)


def _arithmetic_zero(*size: Any, device: Any = None) -> Any:
    mask = _zero_shares(size)
    share = mask if _context().rank == 0 else -mask
    return crypten.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary_zero(*size: Any, device: Any = None) -> Any:
    return crypten.mpc.primitives.BinarySharedTensor.from_shares(_zero_shares(size))


def _binary_rand(*size: Any, bits: int = 64, device: Any = None) -> Any:
    # Each party draws its own share, so neither knows the random number.
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    share = Stream(fresh_seed()).ring(shape)
    return crypten.mpc.primitives.BinarySharedTensor.from_shares(share & ((1 << bits) - 1) if bits < 64 else share)


def _divide(self: Any, divisor: Any) -> Any:
    if isinstance(divisor, float) and divisor.is_integer():
        divisor = int(divisor)
    if isinstance(divisor, int) and divisor > 1 and divisor & (divisor - 1) == 0:
        self.share = truncate(_context(), self.share, divisor.bit_length() - 1)
        return self
    if isinstance(divisor, (int, float)):
        return self.mul_(torch.tensor(1.0 / divisor, dtype=torch.float64))
    if torch.is_tensor(divisor):
        return self.mul_(divisor.double().reciprocal())
    raise MessageError(f"cannot divide a shared tensor by {type(divisor).__name__}")


def _as_tuple(value: Any) -> tuple[int, ...]:
    return (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)


def _spread(value: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return value * dims if len(value) == 1 else value


def _own_settings_for_each_thread() -> None:
    # CrypTen's functions override settings of the whole process while they run (softmax lets its reciprocal assume a
    # positive input, say), which two sessions in one process would do to each other.
    shared = crypten.config.cfg.config
    settings = threading.local()

    def read(_self: Any) -> Any:
        return getattr(settings, "config", shared)

    def write(_self: Any, value: Any) -> None:
        settings.config = value

    type(crypten.config.cfg).config = property(read, write)


def _own_tape_for_each_thread() -> None:
    # Whether autograd is on is a flag of the whole process too, which every function switches off and on again. On the
    # metaclass, a property takes the place of the class's attribute.
    def read(_class: Any) -> bool:
        return getattr(_local, "grad", False)

    def write(_class: Any, value: bool) -> None:
        _local.grad = value

    type(crypten.CrypTensor).AUTOGRAD_ENABLED = property(read, write)


def _install() -> None:
    arithmetic = crypten.mpc.primitives.arithmetic.ArithmeticSharedTensor
    binary = crypten.mpc.primitives.binary.BinarySharedTensor
    communicator = _Communicator()
    crypten.communicator.get = lambda: communicator
    crypten.communicator.is_initialized = lambda: True
    crypten.init = _refuse_generator
    crypten.generators = _RefusedGenerators()
    crypten.mpc.primitives.binary.generate_kbit_random_tensor = _refuse_generator
    crypten.mpc.primitives.arithmetic.generate_random_ring_element = _refuse_generator
    providers = vars(crypten.mpc)["__SUPPORTED_PROVIDERS"]
    for name in list(providers):
        providers[name] = _RefusedProvider(name)
    providers[PROVIDER] = _DealerProvider()
    crypten.config.cfg.mpc.provider = PROVIDER
    _own_settings_for_each_thread()
    arithmetic.PRZS = staticmethod(_arithmetic_zero)
    binary.PRZS = staticmethod(_binary_zero)
    binary.rand = staticmethod(_binary_rand)
    arithmetic.PRSS = staticmethod(_refuse_generator)
    arithmetic.div_ = _divide
    _own_tape_for_each_thread()
    crypten.set_default_cryptensor_type("splitsec")


_install()
