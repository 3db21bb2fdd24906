"""What the two stages that learn from comparisons share: their settings, their data, and the reference.

Reads comparisons, says what they are worth, holds some out by prompt, and computes the reference model's log-probabilities
once, kept in the run folder. It trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.batch import PreferenceBatch
from stockpot.data.pairs import FixedPairs, Pairs, encode_pairs
from stockpot.data.sources import read_records
from stockpot.data.survey import Survey, survey
from stockpot.durable import write_atomically
from stockpot.errors import DataError
from stockpot.model.adapters import LoRA
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.stages.assemble import GentleLoop, Progress, as_settings, as_sources, check_length
from stockpot.train.log_probs import hidden_as_trained, label_log_probs
from stockpot.train.loop import LoopConfig
from stockpot.train.parallel import Group

__all__ = ["ComparisonConfig", "Comparisons", "autocast", "read_comparisons", "with_reference"]

REFERENCE = "reference.json"


class ComparisonConfig(Settings):
    """Where comparisons come from, and how long they are trained on."""

    model: str | None = Field(None, description="what to start from: a run, a checkpoint or a model folder")
    data: tuple[str, ...] = Field(
        ("village:preferences",), description="comparisons: files, folders, patterns, data-set ids"
    )
    max_pairs: int | None = Field(None, ge=2, description="read at most this many comparisons; none: all")
    val_data: tuple[str, ...] | None = Field(
        None, description="comparisons to validate on; none: some of the prompts are held out"
    )
    val_share: float = Field(0.1, gt=0, lt=0.9, description="share of the prompts held out for validation")
    val_pairs: int = Field(500, ge=1, description="validate on at most this many comparisons")
    template: str | None = Field(
        None, description="file with a chat template; none: the model's own, or the default one"
    )
    adapter: LoRA | None = Field(
        None,
        description="train a low-rank adapter and freeze the model, such as adapter.rank=8; none: train all",
    )
    context: int | None = Field(
        None, ge=8, description="longest prompt with one answer, in tokens; none: the model's context"
    )
    passes: float | None = Field(
        None, gt=0, description="passes over the comparisons; none: loop.steps if given, else one"
    )
    loop: GentleLoop = Field(default_factory=GentleLoop, description="steps, batch, optimizer")
    seed: int = Field(0, ge=0, description="decides the order and what is held out")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", "val_data", mode="before")(as_sources)
    _loop = field_validator("loop", mode="before")(as_settings)

    @model_validator(mode="after")
    def _says_once_how_long(self) -> ComparisonConfig:
        check_length(self.passes, self.loop)
        return self


@dataclass(frozen=True)
class Comparisons:
    """Comparisons to train on and to validate on, and what was found in them."""

    train: Pairs
    held_out: Pairs
    survey: Survey
    overlong: int = 0  # left out

    @property
    def counts(self) -> dict[str, int | str]:
        """How many there are, how many were too long, and what was found in them, for a manifest."""
        counts = {"train": len(self.train), "validation": len(self.held_out)}
        lost = {"left_out": self.overlong} if self.overlong else {}
        return counts | lost | {"found": str(self.survey)}


def read_comparisons(config: ComparisonConfig, bundle: Bundle, report: Progress) -> Comparisons:
    """Read and encode comparisons, and hold some out; no prompt is on both sides.

    Raises:
        DataError: if there are none, they are no comparisons, or nothing is left to train on.
    """
    context = config.context or bundle.context

    def encoded(sources: tuple[str, ...], limit: int | None = None) -> tuple[Pairs, Survey]:
        records, found = survey(islice(read_records(sources), limit))
        pairs = encode_pairs(records, bundle.tokenizer, bundle.template, context=context)
        report({"kind": "note", "text": str(found)})
        return pairs, found

    pairs, found = encoded(config.data, config.max_pairs)
    if config.val_data is None:
        train, held_out = pairs.split(config.val_share, seed=config.seed)
    else:
        held_out, _ = encoded(config.val_data)
        train = pairs.without_prompts_of(held_out)
        if leaked := len(pairs) - len(train):
            text = f"{leaked:,} comparisons ask what the validation data asks, too, and are left out"
            report({"kind": "note", "text": text})
        if not len(train):
            raise DataError("Every prompt is in the validation data, too.", "Validate on other prompts.")
    if len(held_out) > config.val_pairs:
        kept = np.random.default_rng(config.seed).permutation(len(held_out))[: config.val_pairs]
        held_out = held_out.only(np.sort(kept), f"{config.val_pairs}")
    return Comparisons(train, held_out, found, pairs.overlong)


@contextmanager
def autocast(device: torch.device, loop: LoopConfig) -> Iterator[None]:
    """Compute matrix products in the number type of training."""
    dtype = machine.pick_dtype(device, loop.dtype)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def with_reference(
    sides: tuple[Pairs, Pairs],
    model: Callable[[], Transformer],
    run: Run,
    group: Group,
    *,
    loop: LoopConfig,
    tokens: int,
) -> tuple[Pairs, Pairs]:
    """Give comparisons their log-probabilities under the reference: those kept in the run, or computed and kept now.

    Args:
        sides: to train on and to validate on.
        model: opens the reference.
        run: keeps them.
        group: the processes; the first one computes for all.
        loop: the number type of products.
        tokens: real tokens of a forward pass.
    """
    file = run.path / REFERENCE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = [pairs.fingerprint for pairs in sides]
    if group.is_first and known.get("of") != named:
        reference = model()
        values = [_log_probs(pairs, reference, loop, tokens, is_learned=pairs is sides[0]) for pairs in sides]
        known = {"of": named, "log_probs": [one.tolist() for one in values]}
        write_atomically(file, json.dumps(known))
    said = group.from_first(lambda: known["log_probs"])
    first, second = (np.array(one, np.float32).reshape(-1, 2) for one in said)
    return replace(sides[0], reference=first), replace(sides[1], reference=second)


def _log_probs(
    pairs: Pairs, model: Transformer, loop: LoopConfig, tokens: int, *, is_learned: bool
) -> np.ndarray:
    """Compute as the policy will be: in training's kernels what is learned from, in those that only read what is not.

    Between the two lie tenths of a nat of a long answer in bfloat16, which would be taken for what the policy has learned.
    """
    was_training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    reads = torch.no_grad() if is_learned else torch.inference_mode()
    with reads, autocast(model.device, loop):
        batch: PreferenceBatch
        for batch in FixedPairs(pairs, tokens=tokens):
            texts = batch.texts.to(model.device)
            hidden = hidden_as_trained(model, texts) if is_learned else None
            found.append(label_log_probs(model, texts, hidden=hidden).per_answer(texts)[0].cpu())
    model.train(was_training)
    return torch.cat(found).numpy()
