"""What a party's process sets for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from splitsec.machine import one_thread

PROGRAM = """
import os, resource, torch
from splitsec.machine import settle
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
available = os.sched_getaffinity(0)
order = settle(1, cpu=len(available))
now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(now > 100 or most == 100)
# A number too high wraps around.
print(order == sorted(available) and os.sched_getaffinity(0) == {min(available)})
print(torch.get_num_threads() == 1)
"""


def test_a_party_keeps_to_its_processor_and_may_have_as_many_connections_as_the_system_allows() -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    assert process.stdout.split() == ["True", "True", "True"]


def test_one_thread_is_for_the_block_alone_also_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        with pytest.raises(ValueError, match="broke"), one_thread():
            raise ValueError("broke")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
