"""From a budget to a model: one dial of size, and what a size costs in parameters, memory, tokens and time.

``sized(depth)`` turns the dial into a `ModelConfig`; `estimate` says what a training run will take before it starts;
`fit_budget` chooses the depth and the tokens that suit the minutes given, from a measurement of this machine. It trains
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

import torch

from stockpot.data.batch import Batch
from stockpot.device import pick_dtype, synchronize
from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA
from stockpot.model.config import ModelConfig, StackConfig, decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.assemble import MICRO_BATCH_TOKENS, adapt, micro_batch_for
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import LossFn, masked_token_loss, next_token_loss, sequence_to_sequence_loss
from stockpot.train.room import most_rows

__all__ = [
    "DEPTHS",
    "TOKENS_PER_PARAMETER",
    "Plan",
    "estimate",
    "fit_budget",
    "sized",
    "tokens_that_fit",
    "training_speed",
]

SHAPES = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder}
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv:2203.15556, table 3
WIDTH_PER_LAYER = 64
DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
SUSTAINED = 0.9  # of the best of a few steps: a run of minutes validates, saves and is disturbed
# Of a measurement, at least so many steps and so many seconds: a processor that stood idle takes its time to be fast.
MEASURED_STEPS, MEASURED_S = 5, 1.5
MOST_STEPS = 500  # and at most so many: a GPU compiles for more, which is no measurement
MOST_S = 20.0  # steps that take longer are measured by two


@dataclass(frozen=True)
class Plan:
    """What a training run will take.

    Attributes:
        depth: layers.
        parameters: of the model.
        tokens: to train on.
        tokens_per_s: measured or assumed speed.
        seconds: tokens / tokens_per_s.
        memory_gib: weights, gradients, optimizer state and activations at their peak, estimated.
        flops: arithmetic in total.
    """

    depth: int
    parameters: int
    tokens: int
    tokens_per_s: float
    seconds: float
    memory_gib: float
    flops: float

    def __str__(self) -> str:
        return (
            f"{self.depth} layers, {self.parameters / 1e6:.1f} M parameters, {self.tokens / 1e6:.1f} M tokens, "
            f"{self.memory_gib:.2f} GiB, about {self.seconds / 60:.1f} min at {self.tokens_per_s:,.0f} tokens/s"
        )


def sized(
    depth: int, *, vocab_size: int, context: int, shape: str = "decoder", **choices: Any
) -> ModelConfig:
    """Turn the dial: ``depth`` layers, 64 wide for each layer (128 at least), heads 64 wide.

    ``choices`` are further fields of the model and its stacks.

    Raises:
        ConfigError: if the shape is unknown or the depth below 1.
    """
    if shape not in SHAPES:
        raise ConfigError(f'shape "{shape}" is unknown.', f"Use one of: {', '.join(SHAPES)}.")
    if depth < 1:
        raise ConfigError(f"size {depth} is below 1.", "Give the number of layers.")
    dim = max(128, WIDTH_PER_LAYER * depth)
    return SHAPES[shape](
        layers=depth, dim=dim, heads=dim // 64, context=context, vocab_size=vocab_size, **choices
    )


def estimate(model: ModelConfig, *, tokens: int, tokens_per_s: float, batch_tokens: int) -> Plan:
    """Say what training ``model`` on ``tokens`` takes.

    Memory counts float32 weights, gradients and two optimizer moments, a bf16 copy of the weights, and activations of
    about 34 bytes per token, layer and unit of width (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2, without the
    attention matrices, which are not kept).
    """
    main: StackConfig = model.main
    parameters = model.parameters()
    activations = (
        34
        * min(batch_tokens, MICRO_BATCH_TOKENS)
        * main.dim
        * main.layers
        * (2 if model.shape == "encoder_decoder" else 1)
    )
    return Plan(
        depth=main.layers,
        parameters=parameters,
        tokens=tokens,
        tokens_per_s=tokens_per_s,
        seconds=tokens / tokens_per_s,
        memory_gib=(18 * parameters + activations) / 2**30,
        flops=model.flops_per_token() * tokens,
    )


def training_speed(
    model: ModelConfig,
    *,
    loop: LoopConfig,
    device: torch.device,
    context: int | None = None,
    at_once: int | None = None,
    adapter: LoRA | None = None,
) -> float:
    """Measure real training steps of ``model`` on random ids; returns the tokens per second that a run sustains.

    Args:
        model: built with random weights.
        loop: optimizer and tokens of a step.
        device: where to.
        context: tokens of a row; None: as many as the model takes.
        at_once: tokens of a micro-batch, of which a step has several; None: a step is one micro-batch.
        adapter: what is trained, if not all of the model.
    """
    network = Transformer(model)
    adapt(network, adapter, loop, device)
    context = context or model.context
    rows, passes = micro_batch_for(loop.batch_tokens, context, at_once or MICRO_BATCH_TOKENS)
    passes = passes if at_once else 1
    ids = torch.randint(0, model.vocab_size, (rows, context))
    losses: dict[str, LossFn] = {
        "decoder": next_token_loss,
        "encoder": masked_token_loss,
        "encoder_decoder": sequence_to_sequence_loss,
    }
    loss_fn = losses[model.shape]
    source = {"source": ids} if model.shape == "encoder_decoder" else {}
    batch, began = Batch(ids, ids, **source), time.monotonic()

    def some() -> Iterator[Batch]:
        for step in count():
            spent = time.monotonic() - began
            if step >= 2 and (spent > MOST_S or (step >= MEASURED_STEPS and spent > MEASURED_S)):
                return
            yield from repeat(batch, passes)

    short = loop.model_copy(
        update={"steps": MOST_STEPS, "batch_tokens": passes * ids.numel(), "log_every": 1}
    )
    events: list[dict[str, Any]] = []
    fit(network, some(), loss_fn, short, progress=events.append)
    # The first step pays for set-up.
    return SUSTAINED * max(float(event["tokens_per_s"]) for event in events[1:])


def tokens_that_fit(
    network: Transformer, loss_fn: LossFn, *, loop: LoopConfig, processes: int, device: torch.device
) -> int:
    """Find the tokens that a GPU computes at once, by trying forward and backward passes; a processor has a fixed number.

    The random state and the weights are left alone. A split model is tried whole, so what is found is on the safe side.
    """
    if device.type != "cuda":
        return MICRO_BATCH_TOKENS
    model, dtype = network.config, pick_dtype(device, loop.dtype)
    context = model.context

    def step(rows: int) -> None:
        ids = torch.zeros((rows, context), dtype=torch.long, device=device)
        source = {"source": ids} if model.shape == "encoder_decoder" else {}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total = loss_fn(network, Batch(ids, ids, **source)).total
        total.backward()  # type: ignore[no-untyped-call]
        for parameter in network.parameters():
            parameter.grad = None
        synchronize(device)

    most = max(1, loop.batch_tokens // processes // context)
    with torch.random.fork_rng([device]):
        return most_rows(step, most, device=device) * context


def fit_budget(
    candidates: Iterable[ModelConfig],
    seconds: float,
    *,
    loop: LoopConfig,
    device: torch.device,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
) -> Plan:
    """Choose the largest candidate that sees ``tokens_per_parameter`` tokens a parameter within ``seconds``.

    The speed of each candidate is measured, from the smallest up, until one is too slow; the smallest is always possible.

    Args:
        candidates: models, smallest first.
        seconds: for training.
        loop: batch and optimizer.
        device: where.
        tokens_per_parameter: how long a model is trained before a larger one pays.

    Raises:
        ConfigError: if ``seconds`` is not positive.
    """
    if seconds <= 0:
        raise ConfigError(f"A budget of {seconds:g} s is no budget.", "Give more minutes.")
    chosen: Plan | None = None
    for model in candidates:
        speed = training_speed(model, loop=loop, device=device)
        plan = estimate(
            model, tokens=int(speed * seconds), tokens_per_s=speed, batch_tokens=loop.batch_tokens
        )
        if chosen is not None and plan.tokens < tokens_per_parameter * plan.parameters:
            break
        chosen = plan
    if chosen is None:
        raise ValueError("fit_budget needs a candidate")
    return chosen
