"""Rules of the whole package that a reader should not have to check by hand."""

import ast
import re
from pathlib import Path

import pytest

import splitsec

PACKAGE = Path(splitsec.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SECRET_PLACES = ["mpc", "transport", "training/aggregation.py", "parties"]
LAYERS = {"transport": 0, "cut": 0, "mpc": 1, "privacy": 2, "training": 3, "choosing": 3, "parties": 4, "launch": 5}
LAYERS |= {"bench": 6, "cli": 7}


def _names(path: Path) -> set[str]:
    """Every dotted name and import in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def _offences(names: set[str], forbidden: str) -> set[str]:
    return {name for name in names if re.fullmatch(forbidden, name)}


UNSAFE = r"(pickle|marshal|shelve|dill|cloudpickle)(\..*)?|torch\.load|eval|exec|.*\.recv_pyobj|.*\.send_pyobj"
WEAK = r"torch\.(Generator|rand|randn|randint|randperm|manual_seed)|random(\..*)?|(np|numpy)\.random\..*"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unsafe_near_a_socket(path: Path) -> None:
    assert not _offences(_names(path), UNSAFE)


@pytest.mark.parametrize("place", SECRET_PLACES)
def test_no_statistical_generator_where_secrets_are(place: str) -> None:
    root = PACKAGE / place
    for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
        # Seeding torch for a model's first weights is the one use that concerns no secret.
        allowed = {"torch.manual_seed"} if path.name == "running.py" else set()
        assert not _offences(_names(path), WEAK) - allowed, path


def test_control_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nimport torch\nx = torch.load('f')\ny = torch.randint(0, 2, (1,))\n")
    assert _offences(_names(bad), UNSAFE) == {"pickle", "torch.load"}
    assert _offences(_names(bad), WEAK) == {"torch.randint"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_downwards(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0]
    if here not in LAYERS:
        return
    for name in _names(path):
        match = re.match(r"splitsec\.(\w+)", name)
        if match and match[1] in LAYERS and match[1] != here:
            assert LAYERS[match[1]] < LAYERS[here], f"{path}: {name}"


def test_only_one_module_touches_crypten() -> None:
    users = {path.name for path in FILES if any(name.split(".")[0] == "crypten" for name in _names(path))}
    # The peer of the benchmark is stock CrypTen in processes of its own.
    assert users == {"crypten_bridge.py", "crypten_peer.py"}


REPLACING = r"os\.(replace|rename)|shutil\.move|.*\.(rename)"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_module_puts_files_into_the_place_of_others(path: Path) -> None:
    # A file that is replaced without being synced first may be empty after a power failure. The peer of the benchmark
    # runs where splitsec is not installed, and keeps nothing.
    allowed = {"files.py", "bench/spu_peer.py"}
    assert bool(_offences(_names(path), REPLACING)) == (str(path.relative_to(PACKAGE)) in allowed)
