"""What is known of a setting, once: its type, default, help, unit, bounds, and whether a run may go on with another.

Settings are fields of frozen dataclasses, annotated with `setting(...)`. TOML files, options of the command line, what
travels to clients, a checkpoint's identity and the reference page are all derived from these annotations.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from splitsec.errors import ConfigError

SettingsT = TypeVar("SettingsT")
_KINDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a number may be.

    Attributes:
        least: smallest value allowed; `above` where it is the first that is not.
        most: largest value allowed; `below` where it is the first that is not.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None


ANY = Bounds()


def setting(
    help: str,
    bounds: Bounds = ANY,
    *,
    unit: str = "",
    example: str = "",
    grows: bool = False,
) -> msgspec.Meta:
    """Describe a setting: `name: Annotated[int, setting("...", Bounds(least=1))] = 3`.

    Args:
        help: one sentence for the reference page and `--help`.
        bounds: of a number.
        unit: of a number, such as `seconds`.
        example: as TOML has it, where the setting has no default.
        grows: whether a run may go on from a checkpoint with a larger value.
    """
    extra = {"unit": unit, "example": example, "grows": grows}
    limits: Any = {"ge": bounds.least, "gt": bounds.above, "le": bounds.most, "lt": bounds.below}
    return msgspec.Meta(**limits, description=help, extra=extra)


@dataclass(frozen=True)
class Described:
    """A setting and everything that is known of it.

    Attributes:
        type: without the annotation.
        annotated: with it; msgspec checks the bounds.
        default: None also where `required`.
        about: what `setting` was told.
    """

    name: str
    type: Any
    annotated: Any
    default: Any
    required: bool
    about: msgspec.Meta

    @property
    def help(self) -> str:
        """Return the sentence on the setting."""
        return self.about.description or ""

    @property
    def unit(self) -> str:
        """Return the unit of the number; empty if it has none."""
        return str((self.about.extra or {}).get("unit", ""))

    @property
    def example(self) -> str:
        """Return a value as TOML has it."""
        return str((self.about.extra or {}).get("example", "")) or "..."

    @property
    def grows(self) -> bool:
        """Return whether a run may go on with a larger value."""
        return bool((self.about.extra or {}).get("grows"))

    @property
    def table(self) -> type[Any] | None:
        """Return the settings that this one holds, if it is a table of its own."""
        return next((kind for kind in _kinds(self.type) if is_dataclass(kind)), None)

    @property
    def kinds(self) -> str:
        """Return what kind of value may be written."""
        if get_origin(self.type) is Literal:
            return "one of " + ", ".join(f'"{choice}"' for choice in get_args(self.type))
        kinds = _kinds(self.type)
        choices = [f'"{choice}"' for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices:
            return "one of " + ", ".join(choices)
        if any(get_origin(kind) is tuple for kind in kinds):
            return 'a list of texts, such as ["ward-a", "ward-b"]'
        return " or ".join(_KINDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)

    @property
    def allowed(self) -> str:
        """Return what may be written: the kind of value, and its bounds."""
        kind = "seconds" if self.unit == "seconds" else self.kinds
        least, above, most, below = self.about.ge, self.about.gt, self.about.le, self.about.lt
        if most is not None and most < 1e6:
            return f"{kind} from {least:g} to {most:g}"
        if below is not None:
            return (
                f"{kind} of at least {least:g} and below {below:g}"
                if above is None
                else (f"{kind} between {above:g} and {below:g}")
            )
        if least is not None:
            return f"{kind} from {least:g} on"
        return kind if above is None else f"{kind} above {above:g}"

    def is_a(self, kind: type) -> bool:
        """Return whether the setting is of this type, or None."""
        return _kinds(self.type) == [kind]

    def allows(self, value: object) -> bool:
        """Return whether a value has the type and is within the bounds; no number that is not finite ever is."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        try:
            msgspec.convert(value, self.annotated)
        except msgspec.MsgspecError:
            return False
        return True


def describe(kind: type[Any]) -> tuple[Described, ...]:
    """Describe every setting of a dataclass, those that a class adds before those that it inherits."""
    hints = get_type_hints(kind, include_extras=True)
    ordered = sorted(fields(kind), key=lambda field: _place(kind, field.name))
    return tuple(_described(field.name, hints[field.name], field) for field in ordered)


def check_bounds(settings: Any, *, where: str = "") -> None:
    """Raise `ConfigError` naming the first setting with a value that its bounds or its type do not allow."""
    for described, value in values_of(settings):
        if is_dataclass(value):
            check_bounds(value, where=f"{where}{described.name}.")
        elif not isinstance(value, (str, tuple)) or get_origin(described.type) is Literal:
            if not described.allows(value):
                finite = "" if not isinstance(value, float) or math.isfinite(value) else "a finite number: "
                raise ConfigError(f"{where}{described.name} = {shown(value)}: write {finite}{described.allowed}")


def values_of(settings: Any) -> Iterator[tuple[Described, Any]]:
    """Give every setting with its value."""
    for described in describe(type(settings)):
        yield described, getattr(settings, described.name)


def part_of(settings: Any, kind: type[SettingsT]) -> SettingsT:
    """Return those of a party's settings that are of one kind, which its own are made of."""
    return kind(**{described.name: getattr(settings, described.name) for described in describe(kind)})


def identity(settings: Any) -> dict[str, Any]:
    """Return the settings that identify a run: all but those that may grow, as JSON gives them back."""
    values = {described.name: value for described, value in values_of(settings) if not described.grows}
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    return decoded


def growing(settings: Any) -> dict[str, Any]:
    """Return the settings of which a run may go on with larger values."""
    return {described.name: value for described, value in values_of(settings) if described.grows}


def shown(value: object) -> str:
    """Return a setting's value as TOML has it, not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value):
        value = {described.name: inner for described, inner in values_of(value)}
    text = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _place(kind: type[Any], name: str) -> tuple[int, int]:
    """Return how far up the class that declares a setting is, and its place there."""
    for depth, base in enumerate(kind.__mro__):
        names = list(inspect.get_annotations(base))
        if name in names:
            return depth, names.index(name)
    raise KeyError(name)


def _described(name: str, hint: Any, field: Any) -> Described:
    optional = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    bare, about = optional[0], msgspec.Meta()
    if get_origin(bare) is Annotated:
        bare, *notes = get_args(bare)
        about = next((note for note in notes if isinstance(note, msgspec.Meta)), about)
    if optional[0] is not hint:
        bare = bare | None
    required = field.default is MISSING and field.default_factory is MISSING
    default = None if required else field.default if field.default is not MISSING else field.default_factory()
    return Described(name, bare, hint, default, required, about)


def _kinds(bare: Any) -> list[Any]:
    """Return what a type may be, without None."""
    if get_origin(bare) in (tuple, Literal) or not get_args(bare):
        return [bare]
    return [kind for kind in get_args(bare) if kind is not NoneType]
