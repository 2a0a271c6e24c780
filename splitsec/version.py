"""The version of the package, and that of the messages between parties."""

from __future__ import annotations

__version__ = "0.1.0"
# Parties with different numbers refuse each other. CHANGELOG.md says what each number changed.
PROTOCOL = 6
