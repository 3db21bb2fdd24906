"""What a stage will take, before it starts: the answer to ``--dry-run``.

Loads or builds the model that would be trained and measures a few steps of it; nothing is written.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

import torch

from stockpot import device as machine
from stockpot.config import Settings
from stockpot.data.sources import read_texts
from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA, attach
from stockpot.model.config import ModelConfig
from stockpot.model.frozen import FrozenMatrix
from stockpot.model.linear import Linear
from stockpot.model.outline import outline
from stockpot.stages.ai_feedback import FeedbackConfig
from stockpot.stages.align_image import AlignImageConfig
from stockpot.stages.assemble import ROW_TOKENS, open_to_tune, silent, tokens_at_once, with_steps
from stockpot.stages.comparisons import read_comparisons
from stockpot.stages.cook import PRETRAIN_SHARE, CookConfig
from stockpot.stages.diffusion import DrawConfig
from stockpot.stages.dpo import DPOConfig
from stockpot.stages.ppo import PPOConfig
from stockpot.stages.pretrain import PretrainConfig, plan_pretraining
from stockpot.stages.rank import RankConfig
from stockpot.stages.reward import RewardConfig
from stockpot.stages.sft import SFTConfig, read_conversations
from stockpot.stages.sizes import Plan, estimate, training_speed
from stockpot.stages.tokenizer import TokenizerConfig
from stockpot.stages.tune_prompt import PromptTuningConfig
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig
from stockpot.weights.store import load

__all__ = ["plan", "plan_tuning"]

Tunes: TypeAlias = SFTConfig | DPOConfig | RewardConfig

LEAST_ADAPTER = LoRA(rank=1, targets=("query",))  # costs what a soft prompt before frozen weights does
SAMPLE = 2_000  # documents that a planned tokenizer is tried on


def plan(config: Settings, *, minutes: float | None = None) -> Plan | str:
    """Say what a stage with these settings will take on this machine.

    Args:
        config: settings of a stage.
        minutes: of a whole cook.

    Raises:
        ConfigError: if the settings do not fit, as the stage itself would.
    """
    match config:
        case PretrainConfig():
            return plan_pretraining(config)[1]
        case SFTConfig() | DPOConfig() | RewardConfig():
            return plan_tuning(config)[1]
        case DrawConfig():
            return f"{config.loop.steps:,} steps of {config.loop.batch_tokens} pictures of {config.size} × {config.size}"
        case PromptTuningConfig():
            return _tuning(
                _shape("tune-prompt", config.model), config.loop, config.device, adapter=LEAST_ADAPTER
            )
        case AlignImageConfig():
            return _tuning(_shape("align-image", config.model), config.loop, config.device)
        case PPOConfig():
            answers = config.prompts * config.samples
            phases = -(-config.loop.steps // (config.epochs * config.minibatches))
            return (
                f"{config.loop.steps:,} steps: {phases:,} phases of {answers:,} answers of up to "
                f"{config.max_tokens} tokens"
            )
        case FeedbackConfig():
            return f"up to {config.limit:,} pairs, each rated in both orders"
        case RankConfig():
            return f"up to {config.limit:,} prompts, {config.samples} answers of up to {config.max_tokens} tokens to each"
        case CookConfig():
            return _cook(config, minutes)
        case TokenizerConfig():
            return f"a {config.kind} tokenizer of up to {config.vocab_size:,} entries from {', '.join(config.data)}"
        case _:
            raise ConfigError(f"There is no plan for {type(config).__name__}.", "Leave out --dry-run.")


def plan_tuning(config: Tunes) -> tuple[Tunes, Plan]:
    """Read the data, which decides how many steps a pass has; returns the settings with them, and what they take.

    Raises:
        ConfigError, DataError, CheckpointError: as the stage itself would.
    """
    verb = "sft" if isinstance(config, SFTConfig) else "dpo" if isinstance(config, DPOConfig) else "reward"
    bundle = open_to_tune(config.model, config.template, verb=verb)
    context: int | None = None
    if isinstance(config, SFTConfig):
        found = read_conversations(config, bundle)
        loop: LoopConfig = found.config.loop
        context = found.context
    else:
        loop = with_steps(config.loop, config.passes, read_comparisons(config, bundle, silent).train.tokens)
    settled = config.model_copy(update={"loop": loop, "passes": None})
    shape = bundle.model.config
    del bundle  # steps are measured with a model of their own
    return settled, _tuning(shape, loop, config.device, context=context, adapter=config.adapter)


def _shape(verb: str, model: str | None) -> ModelConfig:
    if model is None:
        raise ConfigError("There is no model to tune.", f"Name one: stockpot {verb} MODEL.")
    return load(model, device="cpu", dtype="float32").model.config


def _tuning(
    shape: ModelConfig,
    loop: LoopConfig,
    device: str | None,
    *,
    context: int | None = None,
    adapter: LoRA | None = None,
) -> Plan:
    """Measure steps on rows of ``context`` tokens, by default of as many as tuning's records mostly fill."""
    context = context or min(shape.context, ROW_TOKENS, loop.batch_tokens)
    place = machine.pick_device(device)
    at_once = tokens_at_once(loop, shape, place, adapter, weighs=False)
    speed = training_speed(shape, loop=loop, device=place, context=context, at_once=at_once, adapter=adapter)
    tokens = loop.steps * loop.batch_tokens
    found = estimate(shape, tokens=tokens, tokens_per_s=speed, batch_tokens=loop.batch_tokens)
    if adapter is None:
        return found
    spared = 18 * shape.parameters() - _adapted_bytes(shape, adapter, machine.pick_dtype(place, loop.dtype))
    return replace(found, memory_gib=found.memory_gib - spared / 2**30)


def _adapted_bytes(shape: ModelConfig, adapter: LoRA, dtype: torch.dtype) -> int:
    """Count the frozen weights in the types they are held in, and 18 bytes for each number that is trained."""
    model = outline(shape)
    trained = attach(model, adapter.model_copy(update={"frozen": None}), frozen_dtype=dtype)
    held = {name: one.nbytes for name, one in model.named_parameters() if not one.requires_grad}
    if adapter.frozen is not None:
        layers = [name for name, one in model.named_modules() if isinstance(one, Linear) and name != "head"]
        shapes = {f"{name}.weight": tuple(model.get_parameter(f"{name}.weight").shape) for name in layers}
        rounded = {one: FrozenMatrix(torch.ones(one), adapter.frozen).nbytes for one in set(shapes.values())}
        held |= {name: rounded[one] for name, one in shapes.items()}
    return sum(held.values()) + 18 * trained


def _cook(config: CookConfig, minutes: float | None) -> str:
    """Plan the part of a cook that costs most; its tokenizer is made in memory, from a few documents."""
    texts = islice(read_texts(config.tokenizer.data, config.tokenizer.reading), SAMPLE)
    tokenizer = Tokenizer.train(texts, kind=config.tokenizer.kind, vocab_size=config.tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        asked = config.pretrain.model_copy(update={"tokenizer": folder})
        if minutes is not None:
            asked = asked.model_copy(update={"minutes": minutes * config.share(PRETRAIN_SHARE)})
        expected = plan_pretraining(asked)[1]
    whole = expected.seconds / 60 / config.share(PRETRAIN_SHARE)
    return f"pretraining: {expected}; all stages: about {whole:.0f} min"
