"""Programs of CrypTen's tensors, modules and autograd, between two parties and with splitsec's dealer.

A program is written as for stock CrypTen: each party runs the same function, and values are shared by `src` and opened
by `dst`. What differs is below it (`crypten_bridge`): randomness comes from the dealer, of AES in counter mode, nothing
is pickled, and values are compared by our protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.in_process import Paired, run_pair

# What a party runs: CrypTen's module, and its own inputs. Both parties run the same function.
CrypTenProgram: TypeAlias = Callable[[Any, int, Any], Any]


def run_crypten(program: CrypTenProgram, *, server: Any = None, client: Any = None, timeout: float = 60.0) -> Paired:
    """Run a CrypTen program as server and as client, each in a thread, over a socket pair and with a dealer.

    For developing and for demonstrations: whoever sees the process sees both parties' inputs. The program runs once
    before, on zeros, to learn what randomness it takes; so it must do the same whatever the values are.

    Args:
        program: called with CrypTen's module, the party's rank (0 is the server, 1 the client) and its inputs.
        server: the server's inputs, tensors and what holds them; the client never has them.
        client: the client's.
        timeout: seconds that a party waits for the other.

    Returns:
        What the program returned at each party (`server[0]`, `client[0]`), what the server saw, and the client's cost.

    Raises:
        RandomnessError: the program took other randomness than on zeros, since it depends on values.
        InsecureProviderError: it asks for a provider or a generator of CrypTen's own.

    Example:
        >>> import torch
        >>> def add(crypten, rank, own):
        ...     left = crypten.cryptensor(own if rank == 0 else torch.zeros(2), src=0)
        ...     right = crypten.cryptensor(own if rank == 1 else torch.zeros(2), src=1)
        ...     return (left + right).get_plain_text(dst=1)
        >>> run_crypten(add, server=torch.tensor([1.0, 2.0]), client=torch.tensor([3.0, 4.0])).client[0]
        tensor([4., 6.])
    """
    # Loading CrypTen takes a second, and replaces parts of it for the whole process.
    from splitsec.mpc import crypten_bridge

    def protocol(context: Context, _query: int) -> Any:
        with crypten_bridge.running(context, grad=True):
            own = server if context.rank == SERVER else client
            return program(crypten_bridge.crypten, context.rank, _zeros(own) if context.planning else own)

    return run_pair(protocol, timeout=timeout)


def _zeros(inputs: Any) -> Any:
    """Return inputs of the same shapes that say nothing of their values."""
    if isinstance(inputs, torch.Tensor):
        return torch.zeros_like(inputs)
    if isinstance(inputs, Mapping):
        return {name: _zeros(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_zeros(value) for value in inputs]
    return inputs
