"""Settings: what they are, how recipes, ``--set`` and flags merge, and how a mistake in them is told.

The order is: defaults < recipe files < ``--set a.b=c`` < named flags. Every mistake becomes one
``ConfigError`` that names the place, the key, the value, what was expected and the nearest valid key. This
file knows no stage and no setting by name, and no environment variable changes what it returns.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stockpot.errors import ConfigError

__all__ = [
    "Settings",
    "build",
    "find_recipe",
    "flatten",
    "key_named",
    "read_recipe",
    "shipped_recipes",
    "to_toml",
]

OFF = "none"  # TOML has no null: this word turns a setting off where None is a valid value

S = TypeVar("S", bound="Settings")
Path_ = tuple[str | int, ...]


if TYPE_CHECKING:  # the metaclass has no public name, and type checkers cannot compute one
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _KnownErrors(ModelMetaclass):
    """Turn pydantic's error into ours when a settings object is made by hand: ``LoopConfig(stpes=3)``."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _explain(
                error, cast("type[BaseModel]", cls), values, _Origins(default=cls.__name__)
            ) from None


class Settings(BaseModel, metaclass=_KnownErrors):
    """The base of every settings object: frozen, and unknown keys are an error.

    A field's type, default and ``description`` are the only source of help texts, docs and error messages.
    ``None`` means off or automatic; in TOML and ``--set`` it is written ``"none"``.

    Raises:
        ConfigError: if a value is wrong, naming the key, what was expected and the nearest valid key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_off(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list | tuple) and OFF in value and info.field_name is not None:
            if "None" in str(cls.model_fields[info.field_name].annotation):
                return tuple(None if item == OFF else item for item in value)
            return value
        if not (isinstance(value, str) and value == OFF) or info.field_name is None:
            return value
        known = cls.model_fields.get(info.field_name)
        if known is None:
            return value
        members = list(_members(known.annotation))
        means_itself = any(get_origin(member) is Literal and OFF in get_args(member) for member in members)
        return None if type(None) in members and not means_itself else value


# --- merging ---


@dataclass
class _Origins:
    """Where each key was written, for error messages: a recipe's line, a ``--set`` or a flag."""

    default: str
    places: dict[Path_, str] = field(default_factory=dict)

    def of(self, path: Path_) -> str:
        """Name the place of ``path``, of what was first written inside it, or of the table around it."""
        inside = [key for key in self.places if path and key[: len(path)] == path]
        around = [path[:length] for length in range(len(path), -1, -1)]
        wanted = [path, *inside, *around]
        return next((self.places[key] for key in wanted if key in self.places), self.default)


def build(
    cls: type[S],
    *,
    table: str | None = None,
    recipe_files: Iterable[str | Path] = (),
    sets: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Merge recipes, ``--set`` and flags into one checked settings object.

    Args:
        cls: the settings class to build.
        table: the recipe table this class is read from; ``None`` reads the whole file.
        recipe_files: recipe names or files; later ones win.
        sets: ``key=value`` strings; dotted keys reach into nested settings; values are TOML, else text.
        flags: dotted key → value of the named flags; ``None`` means "not given".

    Raises:
        ConfigError: naming file (and line), key, value, what was expected and the nearest valid key.
    """
    values: dict[str, Any] = {}
    origins = _Origins(default=f"[{table}]" if table else cls.__name__)
    for ref in recipe_files:
        path = find_recipe(ref)
        found, places = _read_recipe(path)
        if table is not None:
            found, places = _only(table, found, places, path)
        origins.places[()] = path.name
        _merge(values, found)
        origins.places.update(places)
    for item in sets:
        key, value = _parse_set(item)
        _put(values, key, value, f"--set {item}")
        origins.places[key] = f"--set {item}"
    for name, value in (flags or {}).items():
        if value is not None:
            key = tuple(name.split("."))
            _put(values, key, value, _flag(key))
            origins.places[key] = _flag(key)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(error, cls, values, origins) from None


def _flag(key: Path_) -> str:
    return "--" + str(key[-1]).replace("_", "-")


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _put(values: dict[str, Any], key: Path_, value: Any, place: str) -> None:
    table = values
    for part in key[:-1]:
        inner = table.setdefault(str(part), {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{place}: {part!r} is a value ({inner!r}), not a table.",
                "Set the whole key, or a key beside it.",
            )
        table = inner
    table[str(key[-1])] = value


def _parse_set(item: str) -> tuple[Path_, Any]:
    key, equals, text = item.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"--set {item}: expected KEY=VALUE.", "Example: --set loop.steps=200")
    try:
        return parts, tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # a number with thousands of digits is no TOMLDecodeError
        return parts, text


# --- recipes ---


def shipped_recipes() -> dict[str, Path]:
    """List the recipes that come with the package: name → file."""
    folder = Path(str(resources.files("stockpot"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested tables as dotted key → value."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def find_recipe(ref: str | Path) -> Path:
    """Find a recipe by shipped name or by file; a name that is both means the shipped one.

    Raises:
        ConfigError: if there is neither; names the nearest shipped recipe.
    """
    shipped = shipped_recipes()
    if str(ref) in shipped:
        return shipped[str(ref)]
    path = Path(ref)
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(ref), shipped, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Shipped recipes: {', '.join(shipped) or 'none'}."
    raise ConfigError(f"{ref}: there is no such recipe, neither a file nor a shipped name.", hint)


def read_recipe(ref: str | Path) -> dict[str, Any]:
    """Read a recipe, merged over its ``base`` if it names one (one level only).

    Raises:
        ConfigError: if a file is missing, is not TOML, or a base has a base.
    """
    return _read_recipe(find_recipe(ref))[0]


def _read_recipe(path: Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    values, places = _read_toml(path)
    base = values.pop("base", None)
    if base is None:
        return values, places
    if not isinstance(base, str):
        raise ConfigError(f"{path.name}: base is {base!r}; expected a recipe's name or file.")
    beside = path.parent / base
    base_path = beside if beside.is_file() else find_recipe(base)
    merged, base_places = _read_toml(base_path)
    if "base" in merged:
        raise ConfigError(
            f"{path.name}: its base {base_path.name} has a base of its own; only one level is read.",
            f"Name {merged['base']!r} as the base, or copy the keys.",
        )
    _merge(merged, values)
    return merged, base_places | places


def _read_toml(path: Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        return tomllib.loads(text), dict(_lines(text, path.name))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}", "Strings need quotes; tables look like [pretrain]."
        ) from None


_HEADER = re.compile(r"\s*\[+\s*([^\[\]#]+?)\s*\]+\s*(#.*)?$")
_KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\")(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"))*)\s*=")


def _lines(text: str, name: str) -> Iterator[tuple[Path_, str]]:
    """Yield each key's ``file:line``; good enough for messages (keys inside long strings are listed too)."""
    table: Path_ = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            table = _dotted(header[1])
            yield table, f"{name}:{number}"
        elif key := _KEY.match(line):
            yield table + _dotted(key[1]), f"{name}:{number}"


def _dotted(text: str) -> Path_:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _only(
    table: str, values: dict[str, Any], places: dict[Path_, str], path: Path
) -> tuple[dict[str, Any], dict[Path_, str]]:
    if not isinstance(values.get(table), dict):
        near = difflib.get_close_matches(table, values, n=1)
        hint = (
            f"Did you mean [{table}] where [{near[0]}] stands?"
            if near
            else f"It has: {', '.join(values) or 'nothing'}."
        )
        raise ConfigError(f"{path.name}: there is no [{table}] table.", hint)
    return values[table], {key[1:]: place for key, place in places.items() if key[:1] == (table,)}


def to_toml(tables: Settings | Mapping[str, Any], *, comment: str = "", explain: bool = False) -> str:
    """Write settings, or tables of settings, as TOML that reads back to the same settings.

    ``None`` is left out where it is the default and written as ``"none"`` where it is not.

    Args:
        tables: one settings object, or table name → settings object or plain values.
        comment: lines for the top of the file, without ``#``.
        explain: write every setting, also those that are off, each with its description behind it.

    Raises:
        ConfigError: if a text, such as the name of a file, is not UTF-8.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    body = tomli_w.dumps(_plain(tables, whole=explain))
    if explain:
        body = "".join(_described(body, tables))
    text = head + ("\n" if head else "") + body
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text[: error.start].rpartition("\n")[2] + text[error.start :].partition("\n")[0]
        raise ConfigError(
            f"{_short(line.strip())} is not UTF-8, and settings are written so.", "Rename the file or folder."
        ) from None
    return text


def _plain(value: Any, *, whole: bool = False) -> Any:
    if isinstance(value, Settings):
        fields = type(value).model_fields
        dumped = value.model_dump(mode="json")
        kept = {}
        for name in fields:
            one = dumped.get(name)
            if one is not None:
                kept[name] = _plain(_settings_or(getattr(value, name), one), whole=whole)
            elif whole or fields[name].get_default(call_default_factory=True) is not None:
                kept[name] = OFF
        return kept
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, whole=whole) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [OFF if inner is None else _plain(inner, whole=whole) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _settings_or(original: Any, dumped: Any) -> Any:
    nested = isinstance(original, Settings) or (
        isinstance(original, (list, tuple)) and any(isinstance(inner, Settings) for inner in original)
    )
    return original if nested else dumped


def _described(text: str, tables: Settings | Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of ``text``, each key's description behind it."""
    paths = {int(place.rpartition(":")[2]): path for path, place in _lines(text, "")}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        found: Any = tables
        about = None
        for part in paths.get(number, ()):
            about = type(found).model_fields.get(str(part)) if isinstance(found, Settings) else None
            found = found.get(str(part)) if isinstance(found, Mapping) else getattr(found, str(part), None)
        description = about.description if about is not None and not isinstance(found, Settings) else None
        yield f"{line}  # {' '.join(description.split())}\n" if description else f"{line}\n"


# --- explaining ---


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the plain types inside unions and ``Annotated``."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif hasattr(annotation, "__metadata__"):
        yield from _members(get_args(annotation)[0])
    else:
        yield annotation


def _nested(annotation: Any) -> list[type[BaseModel]]:
    found = []
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            found.append(member)
        else:
            found += [model for inner in get_args(member) for model in _nested(inner)]
    return found


def _explain(
    error: ValidationError, cls: type[BaseModel], values: Mapping[str, Any], origins: _Origins
) -> ConfigError:
    """One ``ConfigError`` for the first wrong key, with everything pydantic said about it."""
    problems: dict[Path_, list[Any]] = {}
    for problem in error.errors(include_url=False, include_context=False):
        path = _real_path(problem["loc"], values, missing=problem["type"] == "missing")
        problems.setdefault(path, []).append(problem)
    path, about = next(iter(problems.items()))
    key = ".".join(map(str, path))
    more = f" ({len(problems) - 1} more wrong.)" if len(problems) > 1 else ""
    place = origins.of(path)
    kinds = {problem["type"] for problem in about}
    value = about[0]["input"]
    if "extra_forbidden" in kinds:
        return ConfigError(
            f"{place}: there is no setting {key!r} (value {_short(value)}).{more}", _nearest(path, cls)
        )
    if "missing" in kinds:
        return ConfigError(
            f"{place}: {key!r} is missing.{more}", f"Set it in a recipe, or with --set {key}=…"
        )
    expected = " or ".join(dict.fromkeys(_expected(problem) for problem in about))
    if not key:
        return ConfigError(f"{place}: {expected}.{more}")
    return ConfigError(f"{place}: {key} is {_short(value)}; {expected}.{more}")


def _real_path(loc: Sequence[str | int], values: Any, *, missing: bool) -> Path_:
    """Drop the union member names that pydantic puts into its locations."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if _holds(values, part):
            values = values[part]
        elif isinstance(values, BaseModel) and isinstance(part, str) and hasattr(values, part):
            values = getattr(values, part)
        elif not (missing and position == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, (list, tuple)):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, Mapping) and part in values


def _expected(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if problem["type"] in (
        "too_short",
        "too_long",
    ):  # Tuple should have at least 3 items after validation, not 2
        return "expected " + text.partition("should have ")[2].partition(" after")[0]
    found, _, rest = text.partition("Input should be ")
    if rest and not found:
        return "expected " + (rest if problem["type"] == "literal_error" else rest.split(", ")[0])
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _nearest(path: Path_, cls: type[BaseModel]) -> str:
    """Name the setting that was probably meant: a sibling first, then the same word elsewhere."""
    classes = [cls]
    for part in path[:-1]:
        fields = [known.model_fields[str(part)] for known in classes if str(part) in known.model_fields]
        classes = [model for one in fields for model in _nested(one.annotation)] or classes
    parents = ".".join(map(str, path[:-1]))
    siblings = [name for known in classes for name in known.model_fields]
    prefix = parents + "." if parents else ""
    if near := difflib.get_close_matches(str(path[-1]), siblings, n=1):
        return f"Did you mean {prefix + near[0]!r}?"
    everywhere: dict[str, str] = {}
    for name in _all_keys(cls):
        everywhere.setdefault(name.rpartition(".")[2], name)
    if near := difflib.get_close_matches(str(path[-1]), everywhere, n=1, cutoff=0.75):
        return f"Did you mean {everywhere[near[0]]!r}?"
    return f"Valid keys{' in ' + parents if parents else ''}: {', '.join(siblings) or 'none'}."


def key_named(cls: type[BaseModel], name: str) -> str | None:
    """Find the dotted key of the setting called ``name``: the class's own, else the first one inside it."""
    found = [key for key in _all_keys(cls) if key.rpartition(".")[2] == name]
    return min(found, key=lambda key: key.count("."), default=None)


def _all_keys(cls: type[BaseModel], prefix: str = "", depth: int = 4) -> Iterator[str]:
    for name, known in cls.model_fields.items():
        yield prefix + name
        if depth:
            for model in _nested(known.annotation):
                yield from _all_keys(model, f"{prefix}{name}.", depth - 1)
