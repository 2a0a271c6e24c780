import tomllib
from pathlib import Path

import splitsec


def test_the_package_says_the_version_that_is_installed() -> None:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == splitsec.__version__
