"""Registries of what can be added with one file: layouts, rules of aggregation, datasets and others.

An entry is registered where it is defined:

    @RULES.register("median")
    class Median(Aggregation): ...

A file in the registry's package is enough for an entry of this project. Another package adds entries with an entry
point of the group `splitsec.plugins`, which names a module that registers them:

    [project.entry-points."splitsec.plugins"]
    my_rules = "my_package.rules"
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from splitsec.errors import ConfigError, class_and_line

EntryT = TypeVar("EntryT")
GROUP = "splitsec.plugins"
# While one thread imports entries, a look-up in another waits for all of them.
_loading = threading.RLock()


class Registry(Generic[EntryT]):
    """Entries of one kind, by name.

    Args:
        kind: what messages call an entry, such as `layout`.
        package: the package whose modules register entries; they are imported before the first look-up.
    """

    def __init__(self, kind: str, *, package: str | None = None) -> None:
        self._kind = kind
        self._package = package
        self._complete = package is None
        self._entries: dict[str, EntryT] = {}

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Return a decorator that registers an entry under a name.

        Raises:
            ConfigError: another entry has this name.
        """

        def add(entry: EntryT) -> EntryT:
            other = self._entries.get(name)
            if other is not None and other is not entry:
                raise ConfigError(f"there is a {self._kind} '{name}' already, of {_source(other)}: choose another name")
            self._entries[name] = entry
            return entry

        return add

    def register_all(self, entries: Mapping[str, EntryT]) -> None:
        """Register several entries by name.

        Raises:
            ConfigError: another entry has one of the names.
        """
        for name, entry in entries.items():
            self.register(name)(entry)

    def get(self, name: str) -> EntryT:
        """Return the entry of a name.

        Raises:
            ConfigError: no entry has this name; lists those that there are.
        """
        self._load()
        if name not in self._entries:
            raise ConfigError(f"there is no {self._kind} '{name}'; choose one of: {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return the names of all entries, in the order of their registration."""
        self._load()
        return tuple(self._entries)

    def __iter__(self) -> Iterator[EntryT]:
        self._load()
        return iter(tuple(self._entries.values()))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        with _loading:
            if not self._complete:
                # Set before the imports, since an entry's module may look up another entry.
                self._complete = True
                assert self._package is not None
                path = importlib.import_module(self._package).__path__
                for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
                    importlib.import_module(f"{self._package}.{module.name}")
            load_plugins()


@cache
def load_plugins() -> None:
    """Import the modules of other packages that register entries, once in a process.

    Raises:
        ConfigError: one of them cannot be imported; names it and its package.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "a package"
            raise ConfigError(
                f"the plugin '{point.name}' of {package} ({point.value}) cannot be loaded: "
                f"{class_and_line(error)}; mend it, or uninstall {package}"
            ) from error


def _source(entry: object) -> str:
    return str(getattr(entry, "__module__", type(entry).__module__))
