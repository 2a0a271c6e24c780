"""The page of commands, from the parser of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from generate.markdown import code, table
from splitsec.apps.demo import DemoOptions
from splitsec.cli import _parser as make_parser
from splitsec.settings.options import flag_of
from splitsec.settings.setting import Described, describe, shown

HEADER = ["option", "default", "what it does"]
INTRODUCTION = """# Commands

Every command has `--help`, which says the same as this page, and exits with one of the [exit codes](errors.md).
"""


# Commands whose options are made from settings, and not by the parser.
OF_SETTINGS: dict[str, type] = {"splitsec demo": DemoOptions}


def commands(
    parser: argparse.ArgumentParser, path: str = "splitsec"
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield the path, the short help and the parser of every command below `parser` that can be run."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            below = list(commands(child, f"{path} {name}"))
            yield from below
            if not below:
                yield f"{path} {name}", helps.get(name, ""), child


def settings_rows(kind: type, above: str = "") -> list[tuple[str, str, str]]:
    """Return the options of a dataclass of settings, those of its tables last."""
    rows, tables = [], []
    for setting in describe(kind):
        if setting.table is not None:
            tables += settings_rows(setting.table, f"{above}{setting.name}.")
        else:
            default = (
                "" if setting.default is None or setting.default is False else code(shown(setting.default).strip('"'))
            )
            rows.append((code(f"{flag_of(setting, above)} {_setting_value(setting)}".strip()), default, setting.help))
    return [*rows, *tables]


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for path, help_text, parser in commands(make_parser()):
        parts.append(f"## {path}\n")
        parts.append(_sentence(parser.description or help_text) + "\n")
        parts.append(f"```text\n{_usage(parser)}\n```\n")
        if path in OF_SETTINGS:
            parts.append(table(HEADER, settings_rows(OF_SETTINGS[path])))
            continue
        for group in parser._action_groups:
            rows = [_row(action) for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
            if rows:
                parts.append(f"### {_title(group)} {{ #{path.replace(' ', '-')}-{_anchor(group)} }}\n")
                if group.description:
                    parts.append(group.description + "\n")
                parts.append(table(HEADER, rows))
    return "\n".join(parts)


def _setting_value(setting: Described) -> str:
    if setting.is_a(bool):
        return ""
    choices = re.findall(r'"([^"]+)"', setting.kinds) if setting.kinds.startswith("one of") else []
    return "{" + ",".join(choices) + "}" if choices else "VALUE"


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [parser.prog]
    for action in parser._actions:
        if action.option_strings and action.required:
            words += [action.option_strings[-1], _value(action)]
        elif not action.option_strings:
            words.append(_value(action) + (" ..." if action.nargs in ("+", "*") else ""))
    return " ".join(word for word in [*words, "[options]"] if word)


def _title(group: argparse._ArgumentGroup) -> str:
    return {"positional arguments": "Arguments", "options": "Options"}.get(
        group.title or "", _sentence(group.title or "Options").rstrip(".")
    )


def _anchor(group: argparse._ArgumentGroup) -> str:
    return "-".join((group.title or "options").lower().split())


def _row(action: argparse.Action) -> tuple[str, str, str]:
    names = ", ".join(action.option_strings)
    value = _value(action)
    return code(f"{names} {value}".strip()), _default(action), _help(action)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return action.dest.upper()


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.nargs == 0 or action.default in (None, argparse.SUPPRESS, "", [], ()):
        return ""
    value = action.default
    return code(",".join(str(each) for each in value) if isinstance(value, list | tuple) else str(value))


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": "splitsec"} if "%" in (action.help or "") else action.help
    choices = ""
    if action.choices is not None and action.metavar is not None:
        choices = "; one of " + ", ".join(code(str(choice)) for choice in action.choices)
    return _sentence((text or "") + choices)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")", "!")) or not text else ".")
