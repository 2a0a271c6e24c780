"""What a party's process sets for itself."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from splitsec.parties.machine import settle
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
settle(1)
now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(now > 100 or most == 100)
"""


def test_a_party_may_have_as_many_connections_as_the_system_allows() -> None:
    made = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    assert made.stdout.strip() == "True"
