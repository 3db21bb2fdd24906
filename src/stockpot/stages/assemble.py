"""What the stages have in common: from settings to the parts a training run is made of.

Reads corpora into token stores, sizes micro-batches, measures validation data, and turns a bundle into the function that
writes checkpoints. It trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.data.batch import Batch
from stockpot.data.corrupt import causal
from stockpot.data.encode import encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.sources import read_records
from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA, attach, has_adapters
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig
from stockpot.train.losses import LossFn
from stockpot.weights.store import save, save_adapter

__all__ = [
    "Progress",
    "adapt",
    "as_sources",
    "batches",
    "checkpoint_writer",
    "mean_metrics",
    "micro_batch_for",
    "silent",
]

Progress = Callable[[dict[str, Any]], None]
Sources = str | Path | Sequence[str | Path]
MICRO_BATCH_TOKENS = 8192  # enough work a call; measured in benchmarks/notes.md


def silent(event: dict[str, Any]) -> None:
    """Report nothing."""


def as_sources(value: Any) -> Any:
    """Let a single source stand for a tuple of one, in settings and in Python."""
    return (str(value),) if isinstance(value, str | Path) else value


def micro_batch_for(batch_tokens: int, context: int) -> tuple[int, int]:
    """Split a step's tokens into rows of one forward pass and the number of passes.

    Returns:
        (rows of a micro-batch, micro-batches of a step).

    Raises:
        ConfigError: if a step is shorter than one row.
    """
    rows = batch_tokens // context
    if rows < 1:
        raise ConfigError(
            f"loop.batch_tokens = {batch_tokens} is less than one row of {context} tokens.",
            f"Give at least {context}, or choose a shorter context.",
        )
    passes = max(1, math.ceil(rows * context / MICRO_BATCH_TOKENS))
    while rows % passes:
        passes += 1
    return rows // passes, passes


def checkpoint_writer(bundle: Bundle) -> Callable[[Path], None]:
    """Return the function with which the loop writes the model folder of a checkpoint.

    A model with adapters is written as an adapter folder that names the folder its bundle was read from.
    """

    def write(folder: Path) -> None:
        if bundle.source is not None and has_adapters(bundle.model):
            save_adapter(folder, bundle, bundle.source)
        else:
            save(folder, bundle)

    return write


def adapt(model: nn.Module, adapter: LoRA | None, loop: LoopConfig, device: torch.device) -> int:
    """Attach an adapter if one is asked for; return how many parameters are trained.

    Frozen matrices are kept in the type of products, so that no step has to cast them.
    """
    if adapter is None:
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    return attach(model, adapter, frozen_dtype=machine.pick_dtype(device, loop.dtype))


def batches(
    data: Sources, tokenizer: Tokenizer, *, tokens: int = 4_096, context: int = 256, seed: int = 0
) -> Loader:
    """Read a corpus into an endless, seeded iterator of next-token batches of about ``tokens`` positions.

    Raises:
        DataError: if the corpus cannot be read or is shorter than one row.
    """
    store = encode(read_records(data), tokenizer)
    return Loader(store, LoaderConfig(context=context, batch_tokens=tokens, seed=seed), causal(tokenizer))


def mean_metrics(batches: Iterable[Batch], loss_fn: LossFn) -> Callable[[nn.Module], dict[str, float]]:
    """Return a validation function: every metric of ``loss_fn`` over all batches, and the mean loss.

    The totals and the counts are summed separately, so a short last batch weighs what it holds.
    """

    @torch.inference_mode()
    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        sums: dict[str, list[float]] = {}
        device = next(model.parameters()).device
        for batch in batches:
            loss = loss_fn(model, batch.to(device))
            for name, (total, count) in {"loss": (loss.total, loss.count), **loss.metrics}.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(total)
                pair[1] += float(count)
        model.train(was_training)
        return {name: total / count for name, (total, count) in sums.items() if count}

    return validate
