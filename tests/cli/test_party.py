"""Keys, and the commands of a single party."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitsec.cli import main


def test_keys_are_written_once_and_secrets_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["keys", "server", "a", "--out", str(tmp_path / "keys"), "--json", str(tmp_path / "keys.json")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)
    told = capsys.readouterr().out
    assert "stays here" in told
    listed = json.loads((tmp_path / "keys.json").read_text())
    assert set(listed) == {"server", "a"}
    for path in (tmp_path / "keys").glob("*_secret"):
        secret = path.read_text().split()[-1].strip('"')
        assert secret not in told
        assert secret not in (tmp_path / "keys.json").read_text()
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("role", ["server", "dealer", "client"])
def test_a_file_that_is_not_there_is_named(role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([role, "--config", str(tmp_path / "nothing.toml")])
    assert ended.value.code not in (0, None)
    assert "nothing.toml" in capsys.readouterr().err
