import stat
from pathlib import Path

import pytest

from splitsec.errors import AuthenticationError, ConfigError
from splitsec.transport import load_key_pair, load_public_key, load_public_keys, make_keys


def test_keys_are_fresh_and_the_secret_is_its_owners_alone(tmp_path: Path) -> None:
    make_keys(tmp_path, ["server", "client-1"])
    server, client = load_key_pair(tmp_path, "server"), load_key_pair(tmp_path, "client-1")
    assert server.secret != client.secret
    assert load_public_keys(tmp_path) == {"server": server.public, "client-1": client.public}
    assert stat.S_IMODE((tmp_path / "server.key_secret").stat().st_mode) == 0o600
    assert server.secret.decode() not in (tmp_path / "server.key").read_text()
    assert server.secret.decode() not in repr(server)


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    make_keys(tmp_path, ["server"])
    before = (tmp_path / "server.key_secret").read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        make_keys(tmp_path, ["dealer", "server"])
    assert (tmp_path / "server.key_secret").read_bytes() == before
    assert not (tmp_path / "dealer.key").exists()


@pytest.mark.parametrize("name", ["", "../evil", "Server", "a b", "1st", "x" * 70])
def test_names_that_cannot_be_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a party"):
        make_keys(tmp_path, [name])


def test_missing_or_broken_keys_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="splitsec keys --out"):
        load_key_pair(tmp_path, "server")
    (tmp_path / "server.key_secret").write_text("nonsense")
    (tmp_path / "server.key_secret").chmod(0o600)
    with pytest.raises(AuthenticationError, match="no usable secret key"):
        load_key_pair(tmp_path, "server")
    with pytest.raises(AuthenticationError, match="copy it from its owner"):
        load_public_key(tmp_path, "dealer")
    make_keys(tmp_path, ["client"])
    (tmp_path / "other.key_secret").write_bytes((tmp_path / "client.key").read_bytes())
    (tmp_path / "other.key_secret").chmod(0o600)
    with pytest.raises(AuthenticationError, match="holds no secret key"):
        load_key_pair(tmp_path, "other")


@pytest.mark.parametrize(
    ("mode", "who"),
    [(0o644, "all users of this machine can read it"), (0o640, "its group"), (0o604, "all users"), (0o620, "write to")],
)
def test_a_secret_key_that_others_can_open_is_refused(tmp_path: Path, mode: int, who: str) -> None:
    make_keys(tmp_path, ["server"])
    path = tmp_path / "server.key_secret"
    path.chmod(mode)
    with pytest.raises(AuthenticationError, match=f"{who}.* chmod 600 {path}"):
        load_key_pair(tmp_path, "server")
    # Controls: what the advice makes of it is taken, and so is a key that not even its owner can write.
    for good in (0o600, 0o400):
        path.chmod(good)
        load_key_pair(tmp_path, "server")
