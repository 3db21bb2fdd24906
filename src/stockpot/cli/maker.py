"""What all makers do around their stage: settings, dry run, progress, how it ended.

Merges recipe, ``--set`` and flags, and knows no verb and no stage; ``make`` and ``scale`` hold the verbs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stockpot.cli import show
from stockpot.cli.grammar import Making, Resuming, Settling, tell_how_to_go_on

if TYPE_CHECKING:
    from stockpot.config import Settings
    from stockpot.run import Run

    S = TypeVar("S", bound=Settings)

__all__ = ["Maker", "plan_tuning", "settle", "train"]


def train(
    verb: str,
    stage: Callable[..., Run],
    cls: type[S],
    flags: Resuming,
    own: dict[str, Any],
    *,
    plan: Callable[[S], tuple[S, Any]] | None = None,
) -> None:
    """Do what every verb that trains does: merge its settings, then plan or train.

    Args:
        verb: what was typed; also the recipe table it reads.
        stage: trains.
        cls: the stage's settings.
        flags: the common flags.
        own: dotted key → value of the verb's own flags.
        plan: for a dry run: settles what the settings leave open and says what it takes; None: the general one.
    """
    maker = Maker(verb, verb, flags)
    config = maker.settings(cls, own)
    if flags.dry_run:
        maker.print_plan(*(plan(config) if plan else (config,)))
        return
    if maker.is_first:
        maker.check_folder()
    maker.make(lambda progress: stage(config, out=maker.out, resume=maker.resume, progress=progress))


def settle(
    cls: type[S],
    table: str | None,
    flags: Settling,
    own: dict[str, Any],
    *,
    recipes: Sequence[str | Path] | None = None,
) -> S:
    """Merge recipes, ``--set`` and flags into the settings of a verb.

    Args:
        cls: the settings.
        table: the recipe table that is read; None reads the whole recipe.
        flags: the common flags.
        own: dotted key → value of the verb's own flags.
        recipes: recipe names and files; None: those that the flags name.
    """
    from stockpot.config import build, key_named

    named = ((name, key_named(cls, name)) for name in ("device", "dtype", "seed"))
    standing = {key: getattr(flags, name) for name, key in named if key is not None}
    return build(
        cls,
        table=table,
        recipe_files=(flags.recipe or ()) if recipes is None else recipes,
        sets=flags.sets or (),
        flags=standing | own,
    )


def plan_tuning(config: Any) -> tuple[Any, Any]:
    """Read the data, settle the steps, and say what they take."""
    from stockpot.stages.budget import plan_tuning as plan

    return plan(config)


class Maker:
    """What all makers do around their stage: settings, dry run, progress, how it ended.

    Args:
        verb: what was typed.
        table: the recipe table it reads; None reads the whole recipe.
        flags: the common flags.
        recipe: what is read when no recipe is named.
    """

    def __init__(self, verb: str, table: str | None, flags: Making, *, recipe: str | None = None) -> None:
        self.verb = verb
        self.table = table
        self.flags = flags
        self.recipe = recipe
        self.out = flags.out or Path("runs") / (recipe or verb)
        self.is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        # torchrun runs one command, at the start and after each failure: there it continues what there is, if anything.
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        self.asks_to_resume = isinstance(flags, Resuming) and flags.resume
        self.resume = self.asks_to_resume and not (restarts and not self.out.exists())

    def settings(self, cls: type[S], own: dict[str, Any]) -> S:
        """Merge recipe, ``--set`` and flags; a resumed run reads its own recipe unless another is named."""
        return settle(cls, self.table, self.flags, own, recipes=self._recipes())

    def _recipes(self) -> list[str | Path]:
        kept = self.out / "recipe.toml"
        if self.flags.recipe:
            return list(self.flags.recipe)
        if self.asks_to_resume and kept.is_file():
            return [kept]
        return [self.recipe] if self.recipe else []

    def check_folder(self) -> None:
        """Refuse a folder in which the run could not start, before data is read."""
        from stockpot.run import check_folder

        check_folder(self.out, stage=self.verb, resume=self.resume)

    def make(
        self,
        stage: Callable[[show.Progress], Any],
        ending: Callable[[Any], dict[str, Any]] | None = None,
    ) -> None:
        """Run the stage and print what came out; ``ending`` says what to print in place of what can be told of it."""
        from stockpot.cli.identify import identify

        with tell_how_to_go_on(self.verb, self.out), show.progress(self.flags) as progress:
            made = stage(progress)
            if getattr(made, "status", None) == "interrupted":
                raise KeyboardInterrupt
        if not self.is_first:
            return
        if ending is not None:
            facts = ending(made)
        else:
            found = identify(getattr(made, "path", Path(str(made))))
            left_out = ("command", "started", "ended", "newest checkpoint")
            facts = {name: value for name, value in found.facts.items() if name not in left_out}
            facts = {found.kind: str(found.path)} | facts
        show.result(self.flags, show.facts(facts), facts)

    def print_plan(self, config: Settings, expected: Any = None, **budget: Any) -> None:
        """Print the settings, as a recipe that can be run, and what they will take."""
        from stockpot.config import to_toml
        from stockpot.stages.budget import plan

        expected = expected or plan(config, **budget)
        settings = {self.table: config} if self.table else config
        comment = f"stockpot {self.verb} --recipe THIS_FILE --out {shlex.quote(str(self.out))}\n{expected}"
        value = {"settings": config.model_dump(mode="json"), "plan": expected}
        show.result(self.flags, to_toml(settings, comment=comment, explain=True).rstrip("\n"), value)
