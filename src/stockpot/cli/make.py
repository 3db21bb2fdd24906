"""The verbs that make something, from train-tokenizer to cook.

Each merges its recipe, ``--set`` and flags into the settings of its stage and calls the stage. Nothing here
trains.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated, Any

import typer

from stockpot.cli.grammar import COMPUTES, Making, Resuming, verb
from stockpot.cli.maker import Maker, plan_tuning, train

__all__ = [
    "Data",
    "ai_feedback",
    "align_image",
    "cook",
    "dpo",
    "grpo",
    "ppo",
    "pretrain",
    "rank",
    "reward",
    "sft",
    "train_draw",
    "train_tokenizer",
    "tune_prompt",
]

PANEL, LEARNED = "Make", "What is learned"
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH", help="Files, folders, patterns in quotes, or village (the default); may be repeated."
    ),
]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="What to start from: a run, a checkpoint, a model folder, a GGUF file or a known name (smollm2).",
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser updates.")]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.05, help="Choose sizes and steps to take about this long on this machine."),
]


@verb("train-tokenizer", panel=PANEL, flags=Making, without=COMPUTES)
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

    maker = Maker("train-tokenizer", "tokenizer", flags)
    config = maker.settings(TokenizerConfig, {"data": data, "kind": kind, "vocab_size": vocab_size})
    if flags.dry_run:
        maker.print_plan(config)
        return
    maker.make(lambda progress: stage(config, out=maker.out))


@verb("pretrain", panel=PANEL, flags=Resuming)
def pretrain(
    flags: Resuming,
    model: Model = None,
    data: Data = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="A tokenizer or a model's folder.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="DEPTH", help="Layers; sets every other size.")] = None,
    steps: Steps = None,
    minutes: Minutes = None,
) -> None:
    """Train a model on text, from nothing or from MODEL."""
    from stockpot.stages.pretrain import PretrainConfig, plan_pretraining
    from stockpot.stages.pretrain import pretrain as stage

    own = {"start": model, "data": data, "tokenizer": tokenizer, "size": size, "minutes": minutes}
    train("pretrain", stage, PretrainConfig, flags, own | {"loop.steps": steps}, plan=plan_pretraining)


@verb("sft", panel=PANEL, flags=Resuming)
def sft(flags: Resuming, model: Model = None, data: Data = None, steps: Steps = None) -> None:
    """Train MODEL to answer: instruction tuning on conversations or prompts with completions."""
    from stockpot.stages.sft import SFTConfig
    from stockpot.stages.sft import sft as stage

    own = {"model": model, "data": data, "loop.steps": steps}
    train("sft", stage, SFTConfig, flags, own, plan=plan_tuning)


@verb("reward", panel=PANEL, flags=Resuming)
def reward(flags: Resuming, model: Model = None, data: Data = None, steps: Steps = None) -> None:
    """Train a reward model from MODEL: it rates answers as people compared them."""
    from stockpot.stages.reward import RewardConfig
    from stockpot.stages.reward import reward as stage

    own = {"model": model, "data": data, "loop.steps": steps}
    train("reward", stage, RewardConfig, flags, own, plan=plan_tuning)


@verb("dpo", panel=PANEL, flags=Resuming)
def dpo(flags: Resuming, model: Model = None, data: Data = None, steps: Steps = None) -> None:
    """Train MODEL on comparisons directly: preferred answers become more probable than rejected ones."""
    from stockpot.stages.dpo import DPOConfig
    from stockpot.stages.dpo import dpo as stage

    own = {"model": model, "data": data, "loop.steps": steps}
    train("dpo", stage, DPOConfig, flags, own, plan=plan_tuning)


Reward = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN|FUNCTION",
        help="What rates answers: a reward model, exact, code, village, or FILE.py:FUNCTION; may be repeated.",
    ),
]


@verb("ppo", panel=PANEL, flags=Resuming)
def ppo(
    flags: Resuming, model: Model = None, reward: Reward = None, data: Data = None, steps: Steps = None
) -> None:
    """Train MODEL to earn rewards: it writes answers, they are rated, better ones become more probable."""
    from stockpot.stages.ppo import PPOConfig
    from stockpot.stages.ppo import ppo as stage

    own = {"model": model, "reward": reward, "data": data, "loop.steps": steps}
    train("ppo", stage, PPOConfig, flags, own)


@verb("grpo", panel=PANEL, flags=Resuming)
def grpo(
    flags: Resuming, model: Model = None, reward: Reward = None, data: Data = None, steps: Steps = None
) -> None:
    """Train MODEL to earn rewards by comparing several answers to each prompt, without a value head."""
    from stockpot.stages.ppo import GRPOConfig
    from stockpot.stages.ppo import grpo as stage

    own = {"model": model, "reward": reward, "data": data, "loop.steps": steps}
    train("grpo", stage, GRPOConfig, flags, own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning(Resuming):
    """Flags of `tune-prompt`: the task that is learned."""

    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="nli, sentiment, sums, or a task file in TOML.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Items; by default the task's own, from the village.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Items to train on; by default those of --data but the first --limit.",
            rich_help_panel=LEARNED,
        ),
    ] = None
    wording: Annotated[
        str | None, typer.Option(metavar="NAME", help="How items are put.", rich_help_panel=LEARNED)
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(help="Items that are kept for asking, and not trained on.", rich_help_panel=LEARNED),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option("--chat", help="Put each prompt as a user's message.", rich_help_panel=LEARNED),
    ] = None

    def questions(self) -> dict[str, Any]:
        """Return what was given as settings of the stage."""
        given = {name: getattr(self, name) for name in ("task", "data", "examples", "limit", "chat")}
        given["wordings"] = None if self.wording is None else (self.wording,)
        return {f"questions.{name}": value for name, value in given.items()}


@verb("tune-prompt", panel=PANEL, flags=Learning)
def tune_prompt(
    flags: Learning,
    model: Model = None,
    length: Annotated[int | None, typer.Option(help="Vectors of the soft prompt.")] = None,
    steps: Steps = None,
) -> None:
    """Tune a soft prompt: a few vectors in front of MODEL, which stays as it is."""
    from stockpot.stages.tune_prompt import PromptTuningConfig
    from stockpot.stages.tune_prompt import tune_prompt as stage

    own: dict[str, Any] = {"model": model, "length": length, "loop.steps": steps}
    train("tune-prompt", stage, PromptTuningConfig, flags, own | flags.questions())


@verb("align-image", panel=PANEL, flags=Resuming)
def align_image(
    flags: Resuming,
    model: Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Pictures with texts: records with image and text, folders, or village:scenes; may be repeated.",
        ),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The tower: a ViT or CLIP folder; by default a small one is trained."
        ),
    ] = None,
    adapters: Annotated[
        str | None, typer.Option(metavar="KIND", help="none, linear, bottleneck, lora or full.")
    ] = None,
    chat: Annotated[bool | None, typer.Option("--chat", help="Put pictures as a user's messages.")] = None,
    steps: Steps = None,
) -> None:
    """Give MODEL eyes: pictures become vectors in front of its words, and it learns to speak of them."""
    from stockpot.stages.align_image import AlignImageConfig
    from stockpot.stages.align_image import align_image as stage

    own = {"model": model, "data": data, "vision": vision, "adapters": adapters, "chat": chat}
    train("align-image", stage, AlignImageConfig, flags, own | {"loop.steps": steps})


@verb("train-draw", panel=PANEL, flags=Resuming)
def train_draw(
    flags: Resuming,
    encoder: Annotated[
        str | None,
        typer.Argument(
            metavar="ENCODER", help="What reads the text: a run, a folder, minilm, words, or nothing."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Pictures with captions, or village:scenes; may be repeated."),
    ] = None,
    steps: Steps = None,
) -> None:
    """Train a small diffusion model that draws what a text says, steered by ENCODER's states."""
    from stockpot.stages.diffusion import DrawConfig
    from stockpot.stages.diffusion import train_draw as stage

    train("train-draw", stage, DrawConfig, flags, {"encoder": encoder, "data": data, "loop.steps": steps})


@verb("ai-feedback", panel=PANEL, flags=Making, without=("dtype",))
def ai_feedback(
    flags: Making,
    judge: Annotated[
        str | None,
        typer.Argument(metavar="JUDGE", help="The model that rates: a run, a model folder or a GGUF file."),
    ] = None,
    data: Data = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Draws two answers to each prompt; without it the data has both."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pairs.")] = None,
) -> None:
    """Have a model compare answers, blind and in both orders; what it says can be learned from like people's comparisons."""
    from stockpot.stages.ai_feedback import FeedbackConfig
    from stockpot.stages.ai_feedback import ai_feedback as stage

    maker = Maker("ai-feedback", "ai_feedback", flags)
    config = maker.settings(FeedbackConfig, {"judge": judge, "data": data, "model": model, "limit": limit})
    if flags.dry_run:
        maker.print_plan(config)
        return

    maker.make(
        lambda progress: stage(config, out=maker.out, progress=progress),
        lambda found: {
            "data": str(maker.out / "comparisons.jsonl"),
            "pairs": found.pairs,
            "consistent": found.consistent,
            "first_chosen": found.first,
            "agreement": found.agreement,
        },
    )


@verb("rank", panel=PANEL, flags=Making, without=("dtype",))
def rank(
    flags: Making,
    model: Model = None,
    data: Data = None,
    reward: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="What rates: a reward model, village, exact, or FILE.py:FUNCTION."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Answers to each prompt.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.")] = None,
) -> None:
    """Have MODEL answer each prompt several times and rank its answers: comparisons of what it writes itself."""
    from stockpot.stages.rank import RankConfig
    from stockpot.stages.rank import rank as stage

    maker = Maker("rank", "rank", flags)
    given = {"model": model, "data": data, "reward": reward, "samples": samples, "limit": limit}
    config = maker.settings(RankConfig, given)
    if flags.dry_run:
        maker.print_plan(config)
        return

    maker.make(
        lambda progress: stage(config, out=maker.out, progress=progress),
        lambda found: {
            "data": str(found.path),
            "comparisons": found.pairs,
            "prompts": found.prompts,
            "rating": found.rating,
            "best": found.best,
        },
    )


@verb("cook", panel=PANEL, flags=Resuming)
def cook(flags: Resuming, minutes: Minutes = None) -> None:
    """Do everything once: tokenizer, pretraining, instruction tuning, reward model, DPO, PPO, evaluation, report.

    What --out holds already and has not changed is kept: the same command goes on after an interruption.
    """
    from stockpot.stages.cook import CookConfig
    from stockpot.stages.cook import cook as stage

    maker = Maker("cook", None, flags, recipe="village")
    trained = ("pretrain", "sft", "reward", "dpo", "ppo")
    config = maker.settings(CookConfig, {f"{stage}.device": flags.device for stage in trained})
    if flags.dry_run:
        maker.print_plan(config, minutes=minutes)
        return
    maker.make(
        lambda progress: stage(
            config, out=maker.out, minutes=minutes, resume=flags.resume, progress=progress
        ),
        lambda run: {
            "report": str(maker.out / "report.html"),
            "to chat": shlex.join(["stockpot", "chat", str(run.path)]),
        },
    )
