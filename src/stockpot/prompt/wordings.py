"""Wordings: the same question put in many ways, read from TOML files.

A task file says which fields an item has, which labels there are, and, for each wording, a Jinja text over the fields and
the words that stand for the labels. Templates run in the sandbox of `text.sandbox`; what stands in a field is a value and
never becomes part of a template. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from stockpot.config import Settings, build
from stockpot.errors import ConfigError
from stockpot.text.sandbox import Renderer, TemplateRefusedError, Worker, compile_template

__all__ = ["Asking", "Extract", "Wording", "find_asking", "shipped_askings"]

Extract: TypeAlias = Literal["text", "number", "choice"]
AT_ONCE = 64  # renderings in one call of the child process, which has a second for them


class Wording(Settings):
    """One way of putting a question."""

    text: str = Field(
        min_length=1, description="Jinja text over the item's fields, up to where the answer begins"
    )
    words: str | dict[str, str] | None = Field(
        None, description="what stands for each label: a table, or the name of one in [words]"
    )
    lead: str = Field(" ", description="what stands between the text and the answer")


class Asking(Settings):
    """A task file: how items of a kind are read and put into words."""

    name: str = Field(min_length=1, description="of the task")
    about: str = Field("", description="one line")
    source: str | None = Field(None, description="village:KIND, or a file of records; --data overrides it")
    fields: dict[str, tuple[str, ...]] = Field(
        description="field of the wordings → names it may have in a record; several names are tried in order"
    )
    answer: tuple[str, ...] = Field(
        ("label", "answer"), description="names of the field with the right answer"
    )
    labels: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="label → its spellings in records; empty: free answers"
    )
    candidates: tuple[str, ...] | None = Field(
        None, description="labels to choose among; none: those that occur in the items"
    )
    extract: Extract = Field("text", description="what of a written answer counts: text · number · choice")
    words: dict[str, dict[str, str]] = Field(default_factory=dict, description="sets of label words, by name")
    wordings: dict[str, Wording] = Field(min_length=1, description="the ways of asking, by name")
    items: tuple[dict[str, Any], ...] = Field((), description="items that stand in the file itself")

    @model_validator(mode="after")
    def _fits(self) -> Asking:
        if strange := [label for label in self.candidates or () if label not in self.labels]:
            raise ValueError(f"candidates names {strange[0]!r}, which is no label")
        for name, wording in self.wordings.items():
            if isinstance(wording.words, str) and wording.words not in self.words:
                known = ", ".join(self.words) or "none"
                raise ValueError(f"wording {name} names the words {wording.words!r}; there are: {known}")
            if self.labels:
                missing = [label for label in self.labels if label not in self.words_of(name)]
                if missing:
                    raise ValueError(f"wording {name} has no word for {', '.join(missing)}")
        return self

    def words_of(self, wording: str) -> dict[str, str]:
        """Give a wording's word for each label; a label stands for itself where nothing else is said."""
        found = self.wordings[wording].words
        if isinstance(found, str):
            return self.words[found]
        return {label: label for label in self.labels} if found is None else found

    def label_of(self, value: object) -> str | None:
        """Find the label that a record's value means; None if there is none."""
        text = str(value).strip()
        return next((label for label, known in self.labels.items() if text == label or text in known), None)

    def render(self, wording: str, fields: Sequence[Mapping[str, str]]) -> list[str]:
        """Put items into words.

        Raises:
            ConfigError: if the template is wrong or does what is not allowed.
        """
        return render(self.wordings[wording].text, fields, where=f"wording {wording} of {self.name}")

    def select(self, names: Iterable[str] | None) -> Asking:
        """Keep some wordings only.

        Raises:
            ConfigError: if one is not there.
        """
        if names is None:
            return self
        chosen = list(names)
        if unknown := [name for name in chosen if name not in self.wordings]:
            raise ConfigError(
                f"The task {self.name} has no wording {unknown[0]!r}.", f"It has: {', '.join(self.wordings)}."
            )
        return self.model_copy(update={"wordings": {name: self.wordings[name] for name in chosen}})


def render(source: str, cases: Sequence[Mapping[str, str]], *, where: str) -> list[str]:
    """Render a template of a task file with several sets of fields.

    Raises:
        ConfigError: naming ``where`` if the template is wrong, too slow, or does what is not allowed.
    """
    try:
        if (
            source in _shipped_texts()
        ):  # ours are trusted to end; a stranger's runs in a child that can be killed
            return compile_template(source)([dict(case) for case in cases])
        worker = Worker(source)
        try:
            ask: Renderer = worker.render
            return [
                text
                for start in range(0, len(cases), AT_ONCE)
                for text in ask([dict(case) for case in cases[start : start + AT_ONCE]])
            ]
        finally:
            worker.close()
    except TemplateRefusedError as error:
        raise ConfigError(
            f"{where}: {error}.", "Mend the template; it is Jinja text over the fields."
        ) from None


def shipped_askings() -> dict[str, Path]:
    """List the task files that come with the package: name → file."""
    folder = Path(str(resources.files("stockpot"))) / "prompt" / "tasks"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_asking(ref: str | Path | Asking) -> Asking:
    """Read a task file by its shipped name or its path.

    Raises:
        ConfigError: if there is none, or something in it is wrong.
    """
    if isinstance(ref, Asking):
        return ref
    shipped = shipped_askings()
    path = shipped.get(str(ref), Path(ref))
    if not path.is_file():
        raise ConfigError(
            f"{ref}: there is no such task, neither a file nor a shipped name.",
            f"Shipped: {', '.join(shipped)}; a task file is TOML.",
        )
    return build(Asking, recipe_files=[path])


_TEXTS: set[str] = set()


def _shipped_texts() -> set[str]:
    if not _TEXTS:
        for path in shipped_askings().values():
            _TEXTS.update(one.text for one in build(Asking, recipe_files=[path]).wordings.values())
    return _TEXTS
