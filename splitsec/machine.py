"""How a process uses its machine: threads, processors, memory, connections."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from collections.abc import Iterator

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_FREED_BYTES = 1 << 30
_DESCRIPTORS = 1 << 16


def settle(threads: int, cpu: int | None = None) -> list[int] | None:
    """Set up a process that is a party and nothing else.

    Args:
        threads: how many torch may use.
        cpu: keep the process, and the threads that it starts from now on, on this one of its processors, counted from
            0; a number too high wraps around.

    Returns:
        With `cpu`, all processors that this process could use, beginning with the one that it keeps to.
    """
    torch.set_num_threads(threads)
    keep_memory()
    _allow_descriptors()
    freeze_loaded()
    if cpu is None:
        return None
    available = sorted(os.sched_getaffinity(0))
    first = cpu % len(available)
    os.sched_setaffinity(0, {available[first]})
    return available[first:] + available[:first]


def freeze_loaded() -> None:
    """Let the garbage collector look no more at what is loaded now, which stays, in the middle of a query or a step."""
    gc.freeze()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread until the block ends, as parties do, so that times can be compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _allow_descriptors() -> None:
    """Let this process have as many connections as the system allows it; the usual limit of 1,024 is for others."""
    with contextlib.suppress(ValueError, OSError):
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, limit), most))


def keep_memory() -> None:
    """Let this process keep freed memory for its next allocation instead of giving it back to the kernel.

    Every query allocates the same few large tensors again, and a fresh page costs more than what is written into it
    (docs/reference/performance.md). Only glibc knows these settings; elsewhere nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _FREED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _FREED_BYTES)
