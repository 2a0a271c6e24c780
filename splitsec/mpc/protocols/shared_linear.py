"""Layers whose weights no party of a session knows: others contributed them under masks that the dealer knows.

The owner of weights W sends the server F = W - B, with B from a seed that it shares with the dealer. F is uniform, and
server and client both get it. Once a session the dealer gives them shares of B, so they hold shares of W. For an input
x in shares they open e = x - a for a random a, of which the dealer gives shares of B(a); W(x) = W(e) + F(a) + B(a), and
every term is known in shares. All but W(e) is computed offline.

Beaver's triples with one operand fixed: P. Mohassel and Y. Zhang, "SecureML", IEEE S&P 2017, section 4.1; masks in the
place of shares of the operand: A. Patra et al., "ABY2.0", USENIX Security 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import torch

from splitsec.errors import MessageError
from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.correlation import Masks, Shape, correlation
from splitsec.mpc.prg import Stream
from splitsec.mpc.program.program import Program, Step, Weights
from splitsec.mpc.protocols.linear import LinearMask

# The stream of the client's seed that its shares of weights come from; queries count up from 0 and never come here.
SHARES_STREAM = (1 << 64) - 2
TOKEN_BYTES = 16


@correlation
class SharedLinear(LinearMask, frozen=True):
    """One use of a layer whose weights `owner` gave, where they were those of step `source`."""

    owner: str = ""
    source: int = 0

    def part_shapes(self, rank: int) -> list[Shape]:
        return [self.input, self.output]

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        a = server.ring(self.input) + client.ring(self.input)
        return [self.apply(a, masks[self.layer]) - client.ring(self.output)]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        """Return [a, F(a) + c]: this party's shares of a and of W(a)."""
        a = stream.ring(self.input)
        known = corrections[0] if rank == SERVER else stream.ring(self.output)
        return [a, known + self.apply(a, masks[self.layer])]


def shared_linear(context: Context, share: torch.Tensor, item: SharedLinear, weights: Weights | None) -> torch.Tensor:
    """Return shares of W(x) + bias: int64 of `item.output`. One round; each party sends |x| elements.

    Args:
        share: int64 of `item.input`.
        weights: this party's shares of weight and bias.
    """
    a, rest = context.take(item)
    own = share - a
    (other,) = context.exchange([own])
    if context.planning or weights is None:
        return torch.zeros(item.output, dtype=torch.int64)
    return item.apply(own + other, weights.weight).add_(rest).add_(weights.bias)


class SharedWeight(msgspec.Struct, frozen=True, array_like=True):
    """Weight and bias of step `number`, which `owner` gave for its own step `source`."""

    number: int
    owner: str
    source: int
    weight: Shape
    bias: Shape


def shared_weights(program: Program) -> tuple[SharedWeight, ...]:
    """Describe the weights of a program that no party of a session knows."""
    return tuple(
        SharedWeight(number, step.owner, step.source, step.weight, step.bias)
        for number, step in enumerate(program.steps, 1)
        if step.owner
    )


def mask_of(seed: bytes, item: SharedWeight) -> Weights:
    """Return the masks of weight and bias, from the owner's seed."""
    return Weights(Stream(seed, 2 * item.source).ring(item.weight), Stream(seed, 2 * item.source + 1).ring(item.bias))


def client_shares(seed: bytes, items: Sequence[SharedWeight]) -> dict[int, Weights]:
    """Return the client's shares of the masks, by step number, from its seed of the session."""
    stream = Stream(seed, SHARES_STREAM)
    return {item.number: Weights(stream.ring(item.weight), stream.ring(item.bias)) for item in items}


def server_shares(
    owner_seeds: Callable[[str], bytes], client_seed: bytes, items: Sequence[SharedWeight]
) -> list[torch.Tensor]:
    """Return, at the dealer, the server's shares of the masks: weight and bias of each item."""
    shares = []
    for item, other in zip(items, client_shares(client_seed, items).values(), strict=True):
        whole = mask_of(owner_seeds(item.owner), item)
        shares += [whole.weight - other.weight, whole.bias - other.bias]
    return shares


def give(
    program: Program, weights: Mapping[int, Weights], *, token: str, seed: bytes
) -> tuple[Program, list[torch.Tensor]]:
    """Mask the weights of a program: what the owner sends the server.

    Args:
        weights: encoded, by step number, see `encode_weights`.
        token: names the seed at the dealer.

    Returns:
        The program that names the owner, and F of weight and bias of each step that has some.
    """
    steps = list(program.steps)
    tensors = []
    for number, layer in weights.items():
        steps[number - 1] = msgspec.structs.replace(
            steps[number - 1],
            owner=token,
            source=number,
            weight=tuple(layer.weight.shape),
            bias=tuple(layer.bias.shape),
        )
        item = SharedWeight(number, token, number, tuple(layer.weight.shape), tuple(layer.bias.shape))
        masks = mask_of(seed, item)
        tensors += [layer.weight.contiguous() - masks.weight, layer.bias - masks.bias]
    return msgspec.structs.replace(program, steps=tuple(steps)), tensors


def merge_programs(programs: Sequence[Program]) -> Program:
    """Make one program that runs all of them on the same input and returns the mean of their outputs.

    Raises:
        MessageError: they differ in input, output, precision, or comparison.
    """
    first = programs[0]
    for other in programs[1:]:
        for what in ("input_shape", "output_shape", "precision", "comparison"):
            if getattr(first, what) != getattr(other, what):
                raise MessageError(
                    f"the parts of the model differ: {what.replace('_', ' ')} {getattr(first, what)} and "
                    f"{getattr(other, what)}"
                )
    steps: list[Step] = []
    ends = []
    for program in programs:
        moved = len(steps)
        for step in program.steps:
            inputs = tuple(index + moved if index else 0 for index in step.inputs)
            steps.append(msgspec.structs.replace(step, inputs=inputs))
        ends.append(len(steps))
    shape = first.output_shape
    steps.append(Step("add", "sum", tuple(ends), shape))
    steps.append(Step("affine", "mean", (len(steps),), shape, factor=1 / len(programs)))
    return msgspec.structs.replace(
        first,
        steps=tuple(steps),
        limit=min(program.limit for program in programs),
        guaranteed=all(program.guaranteed for program in programs),
        least=max(program.least for program in programs),
    )


def session_weights(
    rank: int,
    items: Sequence[SharedWeight],
    masked: Mapping[int, Weights],
    shares: Mapping[int, Weights],
) -> dict[int, Weights]:
    """Return a party's shares of the weights: those of the masks, to which the server adds the masked weights."""
    if rank == CLIENT:
        return dict(shares)
    return {
        item.number: Weights(
            masked[item.number].weight + shares[item.number].weight, masked[item.number].bias + shares[item.number].bias
        )
        for item in items
    }
