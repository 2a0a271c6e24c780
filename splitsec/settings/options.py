"""Options of the command line, made from settings by tyro.

tyro (as torchtitan uses it) makes options from typed dataclasses, nested ones too, and writes the help; its errors are
shortened to one line here. cyclopts and jsonargparse were tried beside it: neither reads msgspec's annotations better,
and both load longer.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from splitsec.settings.setting import Described, describe, values_of
from splitsec.settings.toml import RENAMED

SettingsT = TypeVar("SettingsT")
# Options before version 0.2, where not only the setting was renamed.
_RENAMED_OPTIONS = {
    **{f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in RENAMED.items()},
    **{f"--dp-{name}": f"--privacy.{name}" for name in ("epsilon", "delta", "unit", "clip", "accountant", "local")},
    **{f"--{name}": f"--privacy.{name}" for name in ("activation-clip", "activation-noise", "nopeek")},
}


def parse_options(kind: type[SettingsT], arguments: Sequence[str], *, prog: str, description: str) -> SettingsT:
    """Read settings from a command's arguments.

    Args:
        kind: a dataclass of settings.
        prog: what the user has typed before the arguments.
        description: for `--help`.

    Raises:
        SystemExit: 2 after one line on what is wrong, or 0 after the help.
    """
    import tyro

    for argument in arguments:
        new = _RENAMED_OPTIONS.get(argument.partition("=")[0])
        if new is not None:
            _refuse(prog, f"{argument.partition('=')[0]} is called {new} now")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                _with_help(kind),
                prog=prog,
                description=description,
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        _refuse(prog, _first_section(complaint.getvalue()).removeprefix("Error parsing "))
    settings = _back(kind, parsed)
    _check(settings, prog, "")
    return settings


def flag_of(described: Described, above: str = "") -> str:
    """Return the option of a setting, such as `--privacy.epsilon`."""
    return f"--{above}{described.name.replace('_', '-')}"


def _with_help(kind: type[Any]) -> type[Any]:
    """Make a dataclass of the same settings as tyro reads them."""
    import tyro

    fields = []
    for described in describe(kind):
        default_hint = "" if described.default is None or described.default is False else f"({described.default})"
        about = tyro.conf.arg(help=described.help, help_behavior_hint=default_hint, metavar=_metavar(described))
        inner = _with_help(described.table) if described.table is not None else _typed(described)
        if described.table is not None:
            default = field(default_factory=inner)
        else:
            default = field() if described.required else field(default=described.default)
        fields.append((described.name, Annotated[inner, about], default))
    options = make_dataclass(kind.__name__, fields, frozen=True, kw_only=True)
    options.__doc__ = ""
    return options


def _metavar(described: Described) -> str | None:
    for kind, metavar in ((int, "N"), (float, "X"), (Path, "PATH"), (str, "NAME")):
        if described.is_a(kind):
            return metavar
    return None


def _typed(described: Described) -> Any:
    """Return a setting's type, with numbers read so that a wrong one is named in plain words."""
    from tyro.constructors import PrimitiveConstructorSpec

    number = next((number for number in (int, float) if described.is_a(number)), None)
    if number is None:
        return described.type

    def read(words: list[str]) -> float:
        try:
            return number(words[0])
        except ValueError:
            raise ValueError(f"write {described.allowed}, not '{words[0]}'") from None

    return Annotated[
        described.type,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar=_metavar(described) or "",
            instance_from_str=read,
            is_instance=lambda value: value is None or isinstance(value, (int, float)),
            str_from_instance=lambda value: [str(value)],
        ),
    ]


def _back(kind: type[SettingsT], parsed: Any) -> SettingsT:
    values = {}
    for described in describe(kind):
        value = getattr(parsed, described.name)
        values[described.name] = _back(described.table, value) if is_dataclass(value) and described.table else value
    return kind(**values)


def _check(settings: Any, prog: str, above: str) -> None:
    """Refuse a value beyond its bounds by the option's name."""
    for described, value in values_of(settings):
        if is_dataclass(value):
            _check(value, prog, f"{described.name}.")
        elif isinstance(value, (int, float)) and not described.allows(value):
            _refuse(prog, f"{flag_of(described, above)} {value:g}: write {described.allowed}")


def _refuse(prog: str, message: str) -> NoReturn:
    print(f"splitsec: {message}; see {prog} --help", file=sys.stderr)
    sys.exit(2)


def _first_section(box: str) -> str:
    """Return what tyro complains of in one line: the first section of its box, without title and frame."""
    # The title is in the frame, or, where the terminal has no characters for frames, the first line.
    lines = [re.sub(r"^[│|]\s?|\s*[│|]$", "", line).strip() for line in box.strip().splitlines()[1:]]
    section: list[str] = []
    for line in lines:
        if not re.match(r"[─-]{4}|[╭╰+]", line):
            section.append(line)
        elif section:
            break
    return " ".join(part for part in section if part)
