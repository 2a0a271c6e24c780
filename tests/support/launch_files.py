"""Reading what lies in `launch/`: its settings, and the commands that its files call."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from splitsec.settings.checks import read_settings
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
CONFIGS = LAUNCH / "configs"
LAYOUTS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
PARTIES: dict[str, Any] = {"dealer": DealerConfig, "server": ServerConfig, "client": ClientConfig}
SERVER_PORT, DEALER_PORT = 5555, 5556
SESSION_PORTS = (40000, 40100)


def settings(path: Path) -> Any:
    """Read and check a TOML file of `configs/` as the party of its name."""
    return read_settings(path, PARTIES[path.stem])


def documents(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def commands(path: Path) -> list[list[str]]:
    """Return what stands behind `splitsec` in every command of a script, a unit or a page, word by word."""
    text = path.read_text().replace("\\\n", " ")
    called = re.findall(r"(?:^|[\s`/])splitsec ((?:demo|keys|server|dealer|client) [^\n`&|;]*)", text, re.MULTILINE)
    # What stands behind a redirection is the shell's.
    lines = [re.split(r"\s\d?>", line)[0] for line in called]
    return [shlex.split(line) for line in lines if " --" in line]
