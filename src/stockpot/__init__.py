"""From raw text to an aligned chat assistant: every ingredient implemented, usable alone, and measured.

The names below are the public interface. Each is imported from its room when it is first used, so that
``import stockpot`` stays fast and does not load torch. This file decides what is public and does nothing
else.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PLACES = {
    "AlignImageConfig": "stockpot.stages.align_image",
    "Batch": "stockpot.data.batch",
    "Bundle": "stockpot.bundle",
    "ChatTemplate": "stockpot.text.chat",
    "CheckpointError": "stockpot.errors",
    "Chunk": "stockpot.generate.request",
    "ClusterPlan": "stockpot.stages.cluster",
    "Completion": "stockpot.generate.request",
    "ConfigError": "stockpot.errors",
    "Contest": "stockpot.stages.contest",
    "CookConfig": "stockpot.stages.cook",
    "DPOConfig": "stockpot.stages.dpo",
    "DataError": "stockpot.errors",
    "DrawConfig": "stockpot.stages.diffusion",
    "EmergenceConfig": "stockpot.stages.emergence",
    "Engine": "stockpot.generate.engine",
    "EvaluateConfig": "stockpot.stages.cook",
    "Feedback": "stockpot.stages.ai_feedback",
    "FeedbackConfig": "stockpot.stages.ai_feedback",
    "GRPOConfig": "stockpot.stages.ppo",
    "GenerationError": "stockpot.errors",
    "Hit": "stockpot.prompt.index",
    "Image": "stockpot.image",
    "Index": "stockpot.prompt.index",
    "IndexConfig": "stockpot.prompt.index",
    "Judging": "stockpot.judge.taskfiles",
    "LadderConfig": "stockpot.stages.ladder",
    "Law": "stockpot.stages.laws",
    "Ledger": "stockpot.stages.ledger",
    "LedgerConfig": "stockpot.stages.ledger",
    "LoRA": "stockpot.model.adapters",
    "Loader": "stockpot.data.loader",
    "LoaderConfig": "stockpot.data.loader",
    "LoopConfig": "stockpot.train.loop",
    "Loss": "stockpot.train.losses",
    "Message": "stockpot.text.chat",
    "ModelConfig": "stockpot.model.config",
    "OptimConfig": "stockpot.train.optim",
    "PPOConfig": "stockpot.stages.ppo",
    "ParallelConfig": "stockpot.train.parallel",
    "PlanConfig": "stockpot.stages.cluster",
    "PrepareConfig": "stockpot.stages.prepare",
    "PrepareReport": "stockpot.stages.prepare",
    "PretrainConfig": "stockpot.stages.pretrain",
    "ProbeConfig": "stockpot.judge.probe",
    "PromptTuningConfig": "stockpot.stages.tune_prompt",
    "Questions": "stockpot.prompt.items",
    "RankConfig": "stockpot.stages.rank",
    "Ranked": "stockpot.stages.rank",
    "ReadConfig": "stockpot.data.reading",
    "Reply": "stockpot.train.rollouts",
    "Report": "stockpot.judge.harness",
    "RewardConfig": "stockpot.stages.reward",
    "Run": "stockpot.run",
    "SFTConfig": "stockpot.stages.sft",
    "Sampling": "stockpot.generate.request",
    "Score": "stockpot.generate.request",
    "ServeConfig": "stockpot.serve.settings",
    "ServeError": "stockpot.errors",
    "Service": "stockpot.serve.service",
    "Shots": "stockpot.prompt.shots",
    "SourcedAnswer": "stockpot.prompt.answering",
    "StockpotError": "stockpot.errors",
    "SweepConfig": "stockpot.stages.sweep",
    "SweepReport": "stockpot.stages.sweep",
    "ThreeKindsConfig": "stockpot.stages.three_kinds",
    "Tokenizer": "stockpot.text.tokenizer",
    "TokenizerConfig": "stockpot.stages.tokenizer",
    "TokenizerError": "stockpot.errors",
    "TrainError": "stockpot.errors",
    "Transformer": "stockpot.model.transformer",
    "Village": "stockpot.village",
    "ai_feedback": "stockpot.stages.ai_feedback",
    "align_image": "stockpot.stages.align_image",
    "ask": "stockpot.prompt.answering",
    "batches": "stockpot.data.corpus",
    "compare": "stockpot.judge.harness",
    "contest": "stockpot.stages.contest",
    "convert": "stockpot.weights.store",
    "cook": "stockpot.stages.cook",
    "decoder": "stockpot.model.config",
    "dpo": "stockpot.stages.dpo",
    "draw": "stockpot.stages.diffusion",
    "emergence": "stockpot.stages.emergence",
    "encoder": "stockpot.model.config",
    "encoder_decoder": "stockpot.model.config",
    "evaluate": "stockpot.judge.harness",
    "evaluate_images": "stockpot.judge.images",
    "fit": "stockpot.train.loop",
    "grpo": "stockpot.stages.ppo",
    "index": "stockpot.prompt.index",
    "ladder": "stockpot.stages.ladder",
    "least_to_most": "stockpot.prompt.steps",
    "ledger": "stockpot.stages.ledger",
    "load": "stockpot.weights.store",
    "load_vision": "stockpot.weights.vision",
    "look": "stockpot.judge.look",
    "losses": "stockpot.train",
    "plan": "stockpot.stages.cluster",
    "ppo": "stockpot.stages.ppo",
    "prepare": "stockpot.stages.prepare",
    "pretrain": "stockpot.stages.pretrain",
    "probe": "stockpot.judge.probe",
    "prompts": "stockpot.judge.prompts",
    "pull": "stockpot.weights.known",
    "rank": "stockpot.stages.rank",
    "read_records": "stockpot.data.sources",
    "read_texts": "stockpot.data.sources",
    "reward": "stockpot.stages.reward",
    "save": "stockpot.weights.store",
    "save_vision": "stockpot.weights.vision",
    "self_consistency": "stockpot.prompt.steps",
    "sft": "stockpot.stages.sft",
    "shots_curve": "stockpot.judge.shots",
    "sweep": "stockpot.stages.sweep",
    "think": "stockpot.prompt.steps",
    "three_kinds": "stockpot.stages.three_kinds",
    "train_draw": "stockpot.stages.diffusion",
    "train_tokenizer": "stockpot.stages.tokenizer",
    "tune_prompt": "stockpot.stages.tune_prompt",
}

try:
    __version__ = version("stockpot")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'stockpot' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
