"""The verbs that make something: train-tokenizer, pretrain, sft, cook.

Each merges its recipe, ``--set`` and flags into the settings of its stage and calls the stage. Nothing here
trains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Making, tell_how_to_go_on, verb

if TYPE_CHECKING:
    from stockpot.config import Settings
    from stockpot.run import Run

    S = TypeVar("S", bound=Settings)

__all__ = ["cook", "pretrain", "sft", "train_tokenizer"]

PANEL = "Make"
Data = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Files, folders, patterns in quotes, or village; may be repeated."),
]
Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="What to start from: a run, a checkpoint or a model folder."),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser updates.")]


@verb("train-tokenizer", panel=PANEL, flags=Making)
def train_tokenizer(
    flags: Making,
    data: Data = None,
    kind: Annotated[
        str | None, typer.Option(help="byte-bpe, bpe, unigram, wordpiece, char, byte, ngram or word.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Entries, special tokens included.")] = None,
) -> None:
    """Train a tokenizer on text."""
    from stockpot.stages.tokenizer import TokenizerConfig
    from stockpot.stages.tokenizer import train_tokenizer as stage

    maker = _Maker("train-tokenizer", "tokenizer", flags)
    own = {"data": data, "kind": kind, "vocab_size": vocab_size}
    config = maker.settings(TokenizerConfig, own)
    maker.make(config, lambda progress: stage(config, out=maker.out))


@verb("pretrain", panel=PANEL, flags=Making)
def pretrain(
    flags: Making,
    model: Model = None,
    data: Data = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="A tokenizer or a model's folder.")
    ] = None,
    steps: Steps = None,
) -> None:
    """Train a model on text, from nothing or from MODEL."""
    from stockpot.stages.pretrain import PretrainConfig
    from stockpot.stages.pretrain import pretrain as stage

    maker = _Maker("pretrain", "pretrain", flags)
    own = {"data": data, "tokenizer": tokenizer, "start": model, "loop.steps": steps}
    config = maker.settings(PretrainConfig, own)
    maker.make(config, lambda progress: stage(config, out=maker.out, resume=flags.resume, progress=progress))


@verb("sft", panel=PANEL, flags=Making)
def sft(flags: Making, model: Model = None, data: Data = None, steps: Steps = None) -> None:
    """Train MODEL to answer: instruction tuning on conversations or prompts with completions."""
    from stockpot.stages.sft import SFTConfig
    from stockpot.stages.sft import sft as stage

    maker = _Maker("sft", "sft", flags)
    config = maker.settings(SFTConfig, {"model": model, "data": data, "loop.steps": steps})
    maker.make(config, lambda progress: stage(config, out=maker.out, resume=flags.resume, progress=progress))


@verb("cook", panel=PANEL, flags=Making)
def cook(
    flags: Making,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Fit everything into about this time on this machine.")
    ] = None,
) -> None:
    """Do everything once: data, tokenizer, pretraining, instruction tuning, evaluation, report."""
    from stockpot.stages.cook import CookConfig
    from stockpot.stages.cook import cook as stage

    maker = _Maker("cook", None, flags, recipe="village")
    config = maker.settings(CookConfig, {})
    maker.make(
        config,
        lambda progress: stage(
            config, out=maker.out, resume=flags.resume, minutes=minutes, progress=progress
        ),
        minutes=minutes,
    )


class _Maker:
    """What all makers do around their stage: settings, dry run, progress, how it ended."""

    def __init__(self, verb: str, table: str | None, flags: Making, *, recipe: str | None = None) -> None:
        self.verb = verb
        self.table = table
        self.flags = flags
        self.recipe = recipe  # what is read when nothing is named
        self.out = flags.out or Path("runs") / (recipe or verb)

    def settings(self, cls: type[S], own: dict[str, Any]) -> S:
        """Merge recipe, ``--set`` and flags; a resumed run reads its own recipe unless another is named."""
        from stockpot.config import build, key_named

        named = ((name, key_named(cls, name)) for name in ("device", "dtype", "seed"))
        standing = {key: getattr(self.flags, name) for name, key in named if key is not None}
        return build(
            cls,
            table=self.table,
            recipe_files=self._recipes(),
            sets=self.flags.sets or (),
            flags=standing | own,
        )

    def _recipes(self) -> list[str | Path]:
        kept = self.out / "recipe.toml"
        if self.flags.recipe:
            return list(self.flags.recipe)
        if self.flags.resume and kept.is_file():
            return [kept]
        return [self.recipe] if self.recipe else []

    def make(self, config: Settings, stage: Callable[[show.Progress], Run | Path], **budget: Any) -> None:
        """Run the stage, or print what it would do; then print what came out."""
        from stockpot.run import check_folder

        if self.flags.dry_run:
            self._print_plan(config, **budget)
            return
        if self.verb != "train-tokenizer":  # which leaves a tokenizer and no run
            check_folder(self.out, stage=self.verb, resume=self.flags.resume)
        with tell_how_to_go_on(self.verb, self.out), show.progress(self.flags) as progress:
            made = stage(progress)
            if getattr(made, "status", None) == "interrupted":
                raise KeyboardInterrupt
        facts = self._ending(made)
        show.result(self.flags, show.facts(facts), facts)

    def _ending(self, made: Run | Path) -> dict[str, Any]:
        from stockpot.cli.identify import identify

        found = identify(getattr(made, "path", Path(str(made))))
        kept = {
            name: value for name, value in found.facts.items() if name not in ("command", "started", "ended")
        }
        return {found.kind: str(found.path), **kept}

    def _print_plan(self, config: Settings, **budget: Any) -> None:
        from stockpot.config import to_toml
        from stockpot.stages.budget import plan

        expected = plan(config, **budget)
        settings = {self.table: config} if self.table else config
        comment = f"stockpot {self.verb} --recipe THIS_FILE --out {self.out}\n{expected}"
        value = {"settings": config.model_dump(mode="json"), "plan": expected}
        show.result(self.flags, to_toml(settings, comment=comment).rstrip("\n"), value)
