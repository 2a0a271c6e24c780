"""Registries: entries by name, packages whose files register themselves, and plugins of other packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from splitsec import registry
from splitsec.errors import ConfigError
from splitsec.registry import Registry


@pytest.fixture(autouse=True)
def _no_plugins_remembered() -> Iterator[None]:
    registry.load_plugins.cache_clear()
    yield
    registry.load_plugins.cache_clear()


def test_an_entry_is_found_by_its_name_and_an_unknown_name_lists_all() -> None:
    rules: Registry[str] = Registry("rule")
    rules.register("mean")("a mean")
    rules.register("median")("a median")
    assert rules.get("median") == "a median"
    assert rules.names() == ("mean", "median")
    with pytest.raises(ConfigError, match="there is no rule 'mode'; choose one of: mean, median"):
        rules.get("mode")


def test_two_entries_of_one_name_are_refused() -> None:
    rules: Registry[object] = Registry("rule")
    rules.register("mean")(object())
    with pytest.raises(ConfigError, match="there is a rule 'mean' already"):
        rules.register("mean")(object())


def test_a_file_in_the_package_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_rules"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from splitsec.registry import Registry\nRULES = Registry('rule', package='some_rules')\n"
    )
    (package / "mode.py").write_text("from some_rules import RULES\nRULES.register('mode')('a mode')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import some_rules  # type: ignore[import-not-found]

    assert "mode" in some_rules.RULES
    assert list(some_rules.RULES) == ["a mode"]
    del sys.modules["some_rules"], sys.modules["some_rules.mode"]


def test_a_look_up_in_another_thread_waits_for_all_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "slow_rules"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from splitsec.registry import Registry\nRULES = Registry('rule', package='slow_rules')\n"
    )
    # An entry's own module may look up another entry meanwhile.
    (package / "mean.py").write_text(
        "import time\nfrom slow_rules import RULES\n"
        "RULES.register('mean')('a mean')\nRULES.get('mean')\ntime.sleep(0.3)\n"
    )
    (package / "mode.py").write_text("from slow_rules import RULES\nRULES.register('mode')('a mode')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import slow_rules  # type: ignore[import-not-found]

    with ThreadPoolExecutor(4) as threads:
        looks = [threads.submit(slow_rules.RULES.get, "mode") for _ in range(4)]
        assert [look.result(20) for look in looks] == ["a mode"] * 4
    for name in ("slow_rules", "slow_rules.mean", "slow_rules.mode"):
        del sys.modules[name]


def test_a_plugin_of_another_package_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules: Registry[str] = Registry("rule")
    monkeypatch.setitem(sys.modules, "the_rules", rules)
    (tmp_path / "a_plugin.py").write_text("import sys\nsys.modules['the_rules'].register('plugged')('from outside')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints([EntryPoint("mine", "a_plugin", registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    assert rules.get("plugged") == "from outside"


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("mine", "no_such_module", registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    with pytest.raises(ConfigError, match=r"the plugin 'mine' of a package \(no_such_module\) cannot be loaded"):
        Registry("rule").get("any")
