"""Task files: a benchmark as one TOML file that says how records become items and how they are scored.

A record's fields are found under the names they have on the hub or in a local copy, the prompt is a Jinja text over them, and
the scorer's settings stand beside it. What a template cannot say (cleaning, joining columns) is a named function in `readings`.
This file knows what a task file holds; `opening` makes its items.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, TemplateError, meta
from pydantic import Field

from stockpot.config import Settings, build
from stockpot.errors import ConfigError
from stockpot.judge.readings import READINGS
from stockpot.judge.tasks import Scorer

__all__ = ["Hub", "Judging", "TaskFile", "find_task", "shipped_tasks"]


class Hub(Settings):
    """Where the data set is on the Hugging Face hub."""

    path: str = Field(min_length=1, description="owner and name")
    config: str | None = Field(None, description="configuration")
    split: str = Field("test", description="what is asked")
    examples: str | None = Field(None, description="the split that examples are shown from")


class TaskFile(Settings):
    """A benchmark: how records are read, asked and scored."""

    name: str = Field(min_length=1, description="of the task")
    version: str = Field("1", description="changes when a score would")
    about: str = Field("", description="one line")
    hub: Hub | None = Field(None, description="where a user with a network gets the data")
    reading: str | None = Field(None, description="a named function that prepares a record first")
    fields: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="field of the templates → names it may have in a record; several are tried in order",
    )
    options: tuple[str, ...] = Field(
        (), description="names of the field with the choices: a list, or label → text"
    )
    columns: tuple[tuple[str, ...], ...] = Field(
        (), description="choices that stand in fields of their own, one set of names for each"
    )
    labels: tuple[str, ...] = Field(
        (), description="labels of the choices, by which a record may name the right one"
    )
    choices: tuple[str, ...] = Field(
        (), description="the completions to choose among; none: the options' texts"
    )
    gold: tuple[str, ...] = Field((), description="names of the field with the right choice or answer")
    spellings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="number of a choice → further ways in which records name it"
    )
    kind: tuple[str, ...] = Field(
        (), description="names of the field with the sort of question, scored apart as well"
    )
    prompt: str = Field("", description="Jinja text over the fields, up to where the answer begins")
    head: str = Field("", description="Jinja text that stands once before everything, such as an instruction")
    target: str | None = Field(
        None, description="Jinja text of the answer as examples show it; none: the right choice"
    )
    lead: str = Field(" ", description="what stands between the prompt and the answer")
    shots: int = Field(0, ge=0, description="examples shown before each question")
    examples: tuple[dict[str, Any], ...] = Field((), description="examples that stand in the file itself")
    example_ids: tuple[str, ...] = Field(
        (), description="records of the data itself that are shown as examples, and never asked"
    )
    first_id: int | None = Field(None, description="records with a smaller number are not asked")
    last_id: int | None = Field(None, description="records with a larger number are not asked")
    scorer: Scorer = Field(
        default_factory=lambda: Scorer(kind="choices"), description="how answers are judged"
    )


class Judging(Settings):
    """What is asked of a model, and how."""

    data: str | None = Field(
        None, description="a file, or a folder with a file named like the task; none: what the task names"
    )
    limit: int | None = Field(100, ge=1, description="most items of a task, evenly spaced; none: all")
    shots: int | None = Field(None, ge=0, description="examples before each question; none: as the task says")
    examples: str | None = Field(
        None, description="a file of records to show as examples; none: as the task says"
    )
    wording: Literal["plain", "chat"] | None = Field(
        None,
        description="how questions are put; none: task files as written, others as the model was trained",
    )
    max_tokens: int | None = Field(None, ge=1, description="longest answer; none: as the task says")
    samples: int | None = Field(
        None, ge=1, description="programs drawn for each problem; none: as the task says"
    )
    temperature: float | None = Field(None, ge=0, description="of drawn programs; none: as the task says")
    seed: int = Field(0, ge=0, description="of drawn programs")
    against: tuple[str, ...] = Field(
        (), description="training text or shards in which the items are looked for"
    )
    run_code: bool = Field(False, description="allow programs written by the model to run, confined")

    def scorer(self, scorer: Scorer) -> Scorer:
        """Put what is wanted in the place of what a task says."""
        named = ("max_tokens", "samples", "temperature")
        changed = {name: value for name in named if (value := getattr(self, name)) is not None}
        return scorer.model_copy(update=changed)


def shipped_tasks() -> dict[str, Path]:
    """List the task files that come with the package: name → file."""
    folder = Path(str(resources.files("stockpot"))) / "judge" / "benchmarks"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_task(ref: str | Path) -> TaskFile:
    """Read a task file by its shipped name or its path.

    Raises:
        ConfigError: if there is none, or something in it is wrong.
    """
    shipped = shipped_tasks()
    path = shipped.get(str(ref), Path(ref))
    if not path.is_file():
        raise ConfigError(
            f"{ref}: there is no such task, neither a file nor a shipped name.",
            f"Shipped: village, {', '.join(shipped)}; a task file is TOML, questions are JSON lines.",
        )
    task = build(TaskFile, recipe_files=[path])
    _check(task, path)
    return task


def _check(task: TaskFile, path: Path) -> None:
    """Refuse a task file that could not be asked, before any data is read."""
    scored = task.scorer.kind
    wrong = ""
    if task.reading is not None and task.reading not in READINGS:
        wrong = f'reading = "{task.reading}" is not one of {", ".join(READINGS)}'
    elif task.reading is None and not task.fields:
        wrong = "[fields] is missing: nothing says what a record holds"
    elif scored == "choices" and task.reading is None and not (task.options or task.columns or task.choices):
        wrong = "a task of choices needs options, columns or choices"
    elif len(task.choices) == 1:
        wrong = "one choice is no choice"
    elif scored in ("choices", "write", "both") and task.reading is None and not task.gold:
        wrong = "gold is missing: nothing says which answer is right"
    if not wrong and task.reading is None:
        wrong = _strange_name(task)
    if wrong:
        raise ConfigError(f"{path}: {wrong}.", "See docs/judging.md for what a task file holds.")


def _strange_name(task: TaskFile) -> str:
    """Find what a template speaks of and no record has: it would be empty in every prompt."""
    known = {*task.fields, "options"}
    for where, text, more in (
        ("prompt", task.prompt, set()),
        ("head", task.head, set()),
        ("target", task.target, {"answer"}),
    ):
        try:
            named = meta.find_undeclared_variables(Environment(autoescape=True).parse(text or ""))
        except (TemplateError, RecursionError) as error:
            return f"the {where} cannot be read ({' '.join(str(error).split())[:200]})"
        if strange := sorted(named - known - more):
            return f"the {where} speaks of {strange[0]!r}; there are {', '.join(sorted(known | more))}"
    return ""
