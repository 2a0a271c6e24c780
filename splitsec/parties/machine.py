"""How a party's process uses its machine: threads, processors, memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
_DESCRIPTORS = 1 << 16


def settle(threads: int, cpu: int | None = None) -> list[int] | None:
    """Set up a process that is a party and nothing else.

    Args:
        threads: how many torch may use.
        cpu: keep the process, and the threads that it starts from now on, on this one of its processors; a number too
            high wraps.

    Returns:
        With `cpu`, all the processors that this process could use, beginning with the one that it keeps to.
    """
    torch.set_num_threads(threads)
    keep_memory()
    _allow_descriptors()
    # What is loaded now stays, so the collector need not look at it in the middle of a query.
    gc.freeze()
    if cpu is None:
        return None
    available = sorted(os.sched_getaffinity(0))
    first = cpu % len(available)
    os.sched_setaffinity(0, {available[first]})
    return available[first:] + available[:first]


def _allow_descriptors() -> None:
    """Let this process have as many connections as it may: the usual limit of 1,024 is for programs of another kind."""
    with contextlib.suppress(ValueError, OSError):
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))


def keep_memory() -> None:
    """Let this process keep freed memory for its next allocation instead of giving it back to the kernel.

    Every query allocates the same few large tensors again, and a fresh page costs more than what is written into it
    (docs/performance.md). Only glibc knows these settings; elsewhere nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
