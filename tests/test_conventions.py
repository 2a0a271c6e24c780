"""Rules of the whole package that a reader should not have to check by hand."""

import ast
import functools
import re
from pathlib import Path

import pytest

import splitsec

PACKAGE = Path(splitsec.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NOISE_AND_SECRETS = [
    "mpc",
    "transport",
    "training/aggregation/masking.py",
    "training/aggregation/dealer.py",
    "training/intersection.py",
    "training/client/intersection.py",
    "parties/client_predictions.py",
]
NOISE_AND_SECRETS += [
    f"privacy/{name}.py" for name in ("noise", "dp_updates", "pate/voting", "activation_guard", "history")
]


@functools.cache
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
# Statistical generators, by the names of torch, numpy, scipy and Python: their output says what comes next.
WEAK = (
    r"torch\.(Generator|rand\w*|normal|bernoulli|multinomial|poisson|binomial|seed|initial_seed|manual_seed)"
    r"|torch\.(default_generator|get_rng_state|set_rng_state|distributions(\..*)?)|.*\bRandomSampler|.*\.rvs"
    r"|(torch\.)?nn\.init(\..*)?|random(\..*)?|(np|numpy)\.random(\..*)?|.*\.(bernoulli|rvs)"
    r"|.*\.(random|normal|uniform|bernoulli|exponential|geometric|cauchy|log_normal)_"
)
# Every file is searched; these alone may use one, and here is why no secret and no noise comes from it.
MAY_BE_STATISTICAL = {
    "apps/workload.py": "inputs whose predictions are timed",
    "apps/latency.py": "inputs whose predictions are timed",
    "advisor/leakage.py": "which public rows measure a cut",
    "advisor/cut_costs.py": "an input that counts operations",
    "cut": "samples that compare the segments with the model, and generators that are put back after tracing",
    "apps/audit_rows.py": "which rows are the attacker's",
    "apps/audit.py": "attackers",
    "apps/pate.py": "which rows are public, and first weights; noise is drawn in privacy/pate/voting.py",
    "apps/predict.py": "likely inputs to measure ranges with",
    "local/simulation.py": "who drops out of a simulation",
    "parties/run.py": "first weights",
    "parties/run_columns.py": "first weights",
    "privacy/audit": "attackers",
    "privacy/dp_sgd.py": "puts torch's generator back after a probe",
    "data/loaders.py": "an order of rows that all clients share, or of a repeatable run",
    "data/row_checks.py": "puts torch's generator back after a look",
    "data/partition.py": "deals a demonstration's rows",
    "randomness.py": "dropout",
    "data/columns.py": "which rows are held out, which all clients agree on",
    "data/datasets/breast.py": "which patients of the demo's data each hospital has not seen",
    "models/literature.py": "inputs of the networks of the literature",
}


def _may_be_statistical(path: Path) -> bool:
    place = path.relative_to(PACKAGE)
    return any(place.is_relative_to(allowed) for allowed in MAY_BE_STATISTICAL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unsafe_near_a_socket(path: Path) -> None:
    assert not _offences(_names(path), UNSAFE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_statistical_generator_where_secrets_may_be(path: Path) -> None:
    assert _may_be_statistical(path) or not _offences(_names(path), WEAK)


@pytest.mark.parametrize("place", MAY_BE_STATISTICAL)
def test_no_exemption_is_left_over(place: str) -> None:
    root = PACKAGE / place
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    assert any(_offences(_names(path), WEAK) for path in files)


@pytest.mark.parametrize("place", NOISE_AND_SECRETS)
def test_where_noise_and_secrets_are_drawn_there_is_no_exemption(place: str) -> None:
    files = [path for path in FILES if path.relative_to(PACKAGE).is_relative_to(place)]
    assert files
    assert not any(_may_be_statistical(path) for path in files)


def test_control_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nimport torch\nx = torch.load('f')\ny = torch.randint(0, 2, (1,))\n")
    assert _offences(_names(bad), UNSAFE) == {"pickle", "torch.load"}
    assert _offences(_names(bad), WEAK) == {"torch.randint"}


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3)",
        "torch.randn_like(x)",
        "torch.empty(3).normal_()",
        "x.uniform_(0, 1)",
        "x.random_()",
        "torch.bernoulli(x)",
        "torch.distributions.Normal(0, 1)",
        "np.random.default_rng(0).normal()",
        "from numpy.random import default_rng",
        "import random",
        "from random import gauss",
        "from torch import randn",
        "import numpy.random as dice",
        "scipy.stats.norm.rvs(3)",
        "nn.init.normal_(x)",
        "torch.seed()",
    ],
)
def test_control_every_statistical_generator_is_seen(line: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(line + "\n")
    assert _offences(_names(bad), WEAK)


@pytest.mark.parametrize("line", ["secrets.token_bytes(16)", "stream.bytes(8)", "x.abs_()", "self._randomness.order"])
def test_control_what_is_no_generator_is_not(line: str, tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(line + "\n")
    assert not _offences(_names(good), WEAK)


def test_only_one_module_touches_crypten() -> None:
    users = {path.name for path in FILES if any(name.split(".")[0] == "crypten" for name in _names(path))}
    assert users == {"crypten_bridge.py"}


# `replace` is a method of text too, so that of a path is known by the variable's name.
REPLACING = r"os\.(replace|rename)|shutil\.move|.*\.rename|(.*(path|file|partial)|Path\(.*\))\.replace"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_module_puts_files_into_the_place_of_others(path: Path) -> None:
    # A file that is replaced without being synced first may be empty after a power failure.
    allowed = {"files.py"}
    assert bool(_offences(_names(path), REPLACING)) == (str(path.relative_to(PACKAGE)) in allowed)


# Calls that wait, and what limits each of them. A socket's own time limit is set where the socket is made.
WAITS = {"recv", "recv_multipart", "recv_into", "send_multipart", "sendall", "accept", "wait", "join", "communicate"}
LIMITED_ELSEWHERE = {
    ("transport/peer.py", "recv_multipart"): "RCVTIMEO",
    ("transport/peer.py", "send_multipart"): "SNDTIMEO",
    ("advisor/machine_speed.py", "recv"): "rcvtimeo",
    ("prediction/server/worker_pool.py", "recv"): "settimeout",
    ("transport/reaching.py", "recv"): "settimeout",
    ("transport/reaching.py", "sendall"): "settimeout",
    ("local/processes.py", "wait"): "SIGKILL",
    ("prediction/server/worker_pool.py", "wait"): "kill()",
    ("prediction/server/worker_pool.py", "join"): "timeout",
    # These wait for the end of a thread of our own that ends with its query, which has limits of its own.
    ("mpc/session/prefetch.py", "join"): "self._closed",
    ("mpc/in_process.py", "join"): "timeout=timeout",
    # The other ends are processes of our own: the stream ends with them.
    ("prediction/server/worker_forker.py", "sendall"): "socket",
    ("prediction/server/worker_forker.py", "recv_into"): "socket",
}


def _unlimited(path: Path) -> set[str]:
    """Calls in a file that may wait for ever: no argument that limits them, and no flag not to block."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in WAITS:
            continue
        said = [ast.unparse(one) for one in node.args] + [
            f"{one.arg}={ast.unparse(one.value)}" for one in node.keywords
        ]
        name = node.func.attr
        if any("NOBLOCK" in one or "DONTWAIT" in one or one.startswith("timeout=") for one in said):
            continue
        # With an argument these have a limit, or are another thing: `text.join(parts)`.
        if name in ("wait", "join") and said:
            continue
        found.add(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_waits_for_ever(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for name in _unlimited(path):
        assert (place, name) in LIMITED_ELSEWHERE, f"{place}: {name}() without a time limit"
        assert LIMITED_ELSEWHERE[place, name] in path.read_text(), f"{place}: {name}() has lost its limit"


def test_control_waits_without_a_limit_are_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "s.recv_multipart(copy=False)\np.wait()\nt.join()\n' '.join(x)\ns.send_multipart(f, zmq.NOBLOCK)\n"
        "q.wait(5)\nq.communicate(timeout=3)\n"
    )
    assert _unlimited(bad) == {"recv_multipart", "wait", "join"}


# Private by its module's name, but what torch's own pages tell one to import.
KNOWN_PRIVATE = {"torch.utils._python_dispatch", "torch.utils._python_dispatch.TorchDispatchMode"}


def _private(names: set[str]) -> set[str]:
    """Private names of other libraries: the next release may have them no more."""
    found = {name for name in names if re.match(r"(torch|torchvision|opacus|numpy|np|zmq|msgspec|sklearn)\.", name)}
    return {name for name in found if re.search(r"\._(?!_)", name)} - KNOWN_PRIVATE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_private_of_other_libraries(path: Path) -> None:
    assert not _private(_names(path))


def test_control_private_names_are_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\nfrom torch.fx.passes.shape_prop import _extract_tensor_metadata\ntorch._C._x()\n")
    assert {"torch._C._x", "torch.fx.passes.shape_prop._extract_tensor_metadata"} <= _private(_names(bad))


def _properties_without_a_verb(source: str) -> list[str]:
    """Return the documented properties of a module whose docstring does not begin with "Return"."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(place, ast.Name) and place.id == "property" for place in node.decorator_list)
        and not (ast.get_docstring(node) or "Return").startswith("Return")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_propertys_docstring_begins_with_a_verb(path: Path) -> None:
    # Ruff's D401 looks at functions and methods, and leaves properties out.
    assert _properties_without_a_verb(path.read_text()) == []


def test_control_a_property_without_a_verb_is_seen() -> None:
    source = 'class A:\n    @property\n    def width(self) -> int:\n        """Bits."""\n        return 1\n'
    assert _properties_without_a_verb(source) == ["width"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_has_a_test_of_its_own(path: Path) -> None:
    """Tests mirror the package, so that what fails points at the module."""
    if path.name in ("__init__.py", "__main__.py"):
        return
    relative = path.relative_to(PACKAGE)
    assert (Path(__file__).parent / relative.parent / f"test_{relative.name}").exists()
