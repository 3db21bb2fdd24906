"""The reference pages, made from the code when mkdocs builds: every command with its flags, every public name.

mkdocs calls ``on_files`` (mkdocs.yml, ``hooks``). Nothing here is committed as text, so nothing can go stale.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

import stockpot
from stockpot.cli.main import ORDER, app

PAGES = {"reference/commands.md": "commands", "reference/python.md": "python"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, maker in PAGES.items():
        files.append(File.generated(config, name, content=globals()[maker]()))
    return files


def commands() -> str:
    """Write the page of all verbs, their arguments and flags."""
    group = typer.main.get_command(app)
    panels = {one.name: str(one.rich_help_panel) for one in app.registered_commands}
    verbs = group.commands  # type: ignore[attr-defined]
    shared = set.intersection(*({one.name for one in verb.params} for verb in verbs.values()))
    any_verb = next(iter(verbs.values()))
    lines = [
        "# Commands",
        "",
        "Made from the program itself; `stockpot VERB --help` says the same. [Command line](../cli.md) explains.",
        "",
    ]
    lines += ["## All verbs", "", *_flags([one for one in any_verb.params if one.name in shared]), ""]
    for panel in ORDER:
        lines += [f"## {panel}", ""]
        for name, verb in verbs.items():
            if panels[name] == panel:
                lines += [
                    f"### {name}",
                    "",
                    _plain(verb.help or ""),
                    "",
                    *_flags([one for one in verb.params if one.name not in shared]),
                    "",
                ]
    return "\n".join(lines)


def _flags(params: list[Any]) -> Iterator[str]:
    yield "| | | default |"
    yield "|---|---|---|"
    for one in params:
        is_flag = one.param_type_name == "option"
        if one.name == "help" or getattr(one, "hidden", False):
            continue
        names = [*one.opts, *one.secondary_opts] if is_flag else [(one.metavar or str(one.name)).upper()]
        shown = ", ".join(f"`{spelling}`" for spelling in names)
        default = one.default
        known = (
            default is not None and default is not False and not callable(default) and default not in ((), [])
        )
        yield f"| {shown} | {_cell(getattr(one, 'help', '') or '')} | {_cell(f'`{default}`') if known else ''} |"


def python() -> str:
    """Write the page of all public names: settings as tables, functions and classes with their docstrings."""
    kinds: dict[str, list[str]] = {"Functions": [], "Settings": [], "Classes": [], "Errors": []}
    for name in sorted(set(stockpot.__all__) - {"__version__"}, key=str.lower):
        value = getattr(stockpot, name)
        if inspect.ismodule(value):
            continue
        kind = _kind(value)
        kinds[kind] += [f"### {name}", "", *_described(name, value, kind), ""]
    head = [
        "# Python",
        "",
        "Made from the code. Everything here is `stockpot.NAME`, and imported when it is first used.",
        "",
    ]
    return "\n".join(head + [line for kind, lines in kinds.items() for line in [f"## {kind}", "", *lines]])


def _kind(value: Any) -> str:
    if not inspect.isclass(value):
        return "Functions"
    if issubclass(value, Exception):
        return "Errors"
    return "Settings" if issubclass(value, BaseModel) else "Classes"


def _described(name: str, value: Any, kind: str) -> Iterator[str]:
    if kind == "Functions":
        yield f"```text\n{name}{_signature(value)}\n```\n"
    yield _docstring(value)
    if kind == "Settings":
        yield "\n| setting | type | default | |\n|---|---|---|---|"
        for key, field in value.model_fields.items():
            default = (
                "required"
                if field.is_required()
                else f"`{_short(field.get_default(call_default_factory=True))}`"
            )
            yield f"| `{key}` | {_cell(_type(field.annotation))} | {_cell(default)} | {_cell(field.description or '')} |"
    elif kind == "Classes":
        for method, function in vars(value).items():
            inner = getattr(function, "__func__", function)
            if not method.startswith("_") and inspect.isfunction(inner):
                first = (inspect.getdoc(inner) or "").split("\n")[0]
                yield f"\n**{method}**`{_signature(inner)}`: {_plain(first)}"


def _docstring(value: Any) -> str:
    first, _, rest = (inspect.getdoc(value) or "").partition("\n\n")
    return _plain(first) + "\n" + (f"\n```text\n{rest}\n```\n" if rest else "")


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(…)"
    return text.replace("'", "")


def _type(annotation: Any) -> str:
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return "`" + re.sub(r"(\w+\.)+(?=\w)", "", text) + "`"


def _short(value: Any) -> str:
    text = type(value).__name__ + "()" if isinstance(value, BaseModel) else repr(value)
    return text if len(text) < 60 else text[:57] + "…"


def _plain(text: str) -> str:
    return text.replace("``", "`").replace("<", "&lt;").strip()


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")
