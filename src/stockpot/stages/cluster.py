"""What pretraining will take on machines that are not here: parameters, arithmetic, memory by part, layout, days, failures.

Everything follows from a model's sizes, data sheets and one assumption that is stated, the share of the peak that is
reached (MFU); runs that were measured can be held beside it. It touches no device and trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator

from stockpot.config import Settings
from stockpot.device import peak_flops, pick_dtype
from stockpot.errors import ConfigError
from stockpot.model.config import ModelConfig
from stockpot.run import Run
from stockpot.stages.machines import FAILURE_DAYS, MACHINES, Machine, devices_of
from stockpot.stages.sizes import sized
from stockpot.train.fused import CHUNK_LOGITS, CHUNK_LOGITS_GPU, LEAST_ROWS
from stockpot.weights.store import load_model

__all__ = ["Check", "ClusterPlan", "PlanConfig", "Share", "checkpoint_interval", "plan"]

USABLE = 0.92  # of a device's memory: the rest is the driver's, the communication's, and fragments
DAY = 86_400.0
ACTIVATION_BYTES = 34  # a token, layer and unit of width; see ``sizes.estimate``
MOST_AT_ONCE = 65_536  # tokens; larger micro-batches are no faster
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


class PlanConfig(Settings):
    """What is planned."""

    size: int | None = Field(None, ge=1, description="the dial: number of layers; sets every other size")
    model: ModelConfig | None = Field(None, description="sizes and parts, instead of size")
    vocab_size: int = Field(32_768, ge=1, description="entries of the vocabulary, where size sets the model")
    context: int = Field(2048, ge=8, description="tokens of a row")
    tokens: float | None = Field(
        None, gt=0, description="to train on, such as 10B; none: tokens_per_parameter for each parameter"
    )
    tokens_per_parameter: float = Field(20.0, gt=0, description="where tokens are not given")
    devices: str = Field(
        "8xH100", description="count and kind, such as 8xH100; cpu: this machine's processor"
    )
    batch_tokens: int = Field(524_288, ge=1, description="of a step, over all devices")
    mfu: float = Field(0.4, gt=0, le=1, description="share of the peak that training reaches")
    write_gb_s: float = Field(1.0, gt=0, description="what one host writes to the checkpoints' store")
    restart_minutes: float = Field(10.0, ge=0, description="from a failure until training goes on")

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, str) and value[-1:].upper() in UNITS:
            return float(value[:-1]) * UNITS[value[-1].upper()]
        return value

    @model_validator(mode="after")
    def _fits(self) -> PlanConfig:
        if (self.size is None) == (self.model is None):
            raise ValueError("give size or model, one of the two")
        devices_of(self.devices)
        return self


@dataclass(frozen=True)
class Share:
    """Memory of one device in bytes, by what it is for; all parts are there at once when the backward pass begins."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Check:
    """A measured run beside what is planned for the same model and speed of machine."""

    run: str
    parameters: int
    planned_parameters: int
    tokens_per_s: float
    planned_tokens_per_s: float
    mfu: float


@dataclass(frozen=True)
class ClusterPlan:
    """What training will take.

    Attributes:
        layout: ddp, fsdp, or fsdp with recomputed layers; None: it does not fit.
        rows: of a micro-batch on each device.
        accumulate: micro-batches of a step on each device.
        traffic_share: time that gradients and weights take on the slowest link, over the time of the arithmetic; what is
            above 1 cannot be hidden behind it.
        interval_s: between checkpoints.
        effective: share of the time in which training gets on, failures and checkpoints taken off.
    """

    devices: str
    count: int
    layers: int
    dim: int
    parameters: int
    tokens: float
    flops: float
    share: Share
    device_gib: float | None
    layout: str | None
    rows: int
    accumulate: int
    tokens_per_s: float
    mfu: float
    days: float
    traffic_share: float
    checkpoint_gb: float
    write_s: float
    failure_days: float
    interval_s: float
    effective: float
    checks: tuple[Check, ...] = ()

    @property
    def effective_days(self) -> float:
        """Days with failures and checkpoints."""
        return self.days / self.effective

    def facts(self) -> dict[str, Any]:
        """Lay out what a person wants to read."""
        of = "" if self.device_gib is None else f" of {self.device_gib:.0f}"
        parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in asdict(self.share).items())
        layout = self.layout or "does not fit: take more or larger devices"
        return {
            "model": f"{self.layers} layers, {self.dim} wide, {self.parameters / 1e6:,.1f} M parameters",
            "tokens": f"{self.tokens / 1e9:,.3f} B ({self.tokens / self.parameters:.1f} a parameter)",
            "arithmetic": f"{self.flops:.3g} FLOP",
            "devices": self.devices,
            "layout": f"{layout}; {self.rows} rows at once, {self.accumulate} times a step, on each device",
            "memory": f"{self.share.total / 2**30:.2f}{of} GiB a device: {parts}",
            "speed": f"{self.tokens_per_s:,.0f} tokens/s at an MFU of {self.mfu:.0%} (assumed)",
            "time": f"{self.days:,.3g} days ({self.days * 24:,.3g} hours)",
            "traffic": f"{self.traffic_share:.0%} of the arithmetic's time",
            "checkpoint": f"{self.checkpoint_gb:,.2f} GB, {self.write_s:,.1f} s to write, every {self.interval_s / 60:,.0f} min",
            "failures": f"one in {self.failure_days:,.3g} days",
            "effective": f"{self.effective:.1%} of the time: {self.effective_days:,.3g} days in all",
        }


def plan(config: PlanConfig, *, runs: Sequence[str | Path] = ()) -> ClusterPlan:
    """Say what pretraining takes on some devices, and hold measured runs beside it.

    Args:
        config: model, tokens, devices and assumptions.
        runs: finished pretraining runs; each is compared with what is planned for its model on its machine.

    Raises:
        ConfigError: if the devices are unknown or a step is too small for them.
        CheckpointError: if a run cannot be read.
    """
    count, name = devices_of(config.devices)
    machine = _this_processor() if name == "cpu" else MACHINES[name]
    model = config.model or sized(config.size or 1, vocab_size=config.vocab_size, context=config.context)
    if config.batch_tokens < count * config.context:
        raise ConfigError(
            f"batch_tokens = {config.batch_tokens:,} is less than a row of {config.context} tokens for each of {count} devices.",
            f"Give at least {count * config.context:,}.",
        )
    parameters = model.parameters()
    tokens = config.tokens or config.tokens_per_parameter * parameters
    layout, rows, share = _layout(model, config, count, machine)
    flops = model.flops_per_token(config.context)
    speed = count * machine.flops * config.mfu / flops
    days = tokens / speed / DAY
    saved = 4.0 * parameters + _state_bytes(model)
    write_s = saved / 1e9 / (config.write_gb_s * math.ceil(count / machine.per_host))
    failure_days = FAILURE_DAYS / count
    interval = checkpoint_interval(write_s, failure_days * DAY)
    return ClusterPlan(
        devices=config.devices,
        count=count,
        layers=model.main.layers,
        dim=model.dim,
        parameters=parameters,
        tokens=tokens,
        flops=flops * tokens,
        share=share,
        device_gib=None if name == "cpu" else machine.memory_gib,
        layout=layout,
        rows=rows,
        accumulate=max(1, round(config.batch_tokens / (count * rows * config.context))),
        tokens_per_s=speed,
        mfu=config.mfu,
        days=days,
        traffic_share=_traffic(model, config, count, machine, layout, rows),
        checkpoint_gb=saved / 1e9,
        write_s=write_s,
        failure_days=failure_days,
        interval_s=interval,
        effective=_effective(write_s, interval, failure_days * DAY, config.restart_minutes * 60),
        checks=tuple(_check(Path(one), config.mfu) for one in runs),
    )


# --- memory ---


def _state_bytes(model: ModelConfig) -> float:
    """Bytes of the optimizer: Muon's momentum for matrices, AdamW's two moments for the rest."""
    matrices = sum(stack.matrix_parameters() for stack in (model.encoder, model.decoder) if stack is not None)
    return 4.0 * matrices + 8.0 * (model.parameters() - matrices)


def _share(model: ModelConfig, config: PlanConfig, layout: str, rows: int, count: int) -> Share:
    parameters, state, main = model.parameters(), _state_bytes(model), model.main
    tokens = rows * config.context
    layer = main.matrix_parameters() / main.layers
    deep = ACTIVATION_BYTES * tokens * main.dim
    kept = deep * main.layers if "recompute" not in layout else 4 * tokens * main.dim * main.layers + deep
    if layout.startswith("ddp"):
        weights, gradients, optimizer = (
            6.0 * parameters,
            4.0 * parameters,
            state,
        )  # float32, and a bfloat16 copy
    else:
        whole = (
            2 * 2.0 * layer + 4.0 * config.vocab_size * model.dim
        )  # two layers on their way, and the embedding
        weights = 4.0 * parameters / count + whole
        gradients = 4.0 * parameters / count + 4.0 * layer + 4.0 * config.vocab_size * model.dim
        optimizer = state / count + 3 * 4.0 * main.matrix_parameters() / count  # and matrices on their way
    logits = CHUNK_LOGITS if config.devices == "cpu" else CHUNK_LOGITS_GPU
    chunk = min(tokens, max(LEAST_ROWS, logits // config.vocab_size))
    return Share(weights, gradients, optimizer, float(kept), 6.0 * chunk * config.vocab_size)


def _layout(
    model: ModelConfig, config: PlanConfig, count: int, machine: Machine
) -> tuple[str | None, int, Share]:
    """Choose the simplest layout that fits, and the largest micro-batch that fits it."""
    most = max(1, config.batch_tokens // (count * config.context))
    room = machine.memory_gib * USABLE * 2**30
    for layout in ("ddp", "ddp, recompute") if count == 1 else ("ddp", "fsdp", "fsdp, recompute"):
        rows = 1 << (most.bit_length() - 1)
        while rows >= 1:
            share = _share(model, config, layout, rows, count)
            if share.total <= room and rows * config.context <= MOST_AT_ONCE:
                return layout, rows, share
            rows //= 2
    return None, 1, _share(model, config, "ddp, recompute" if count == 1 else "fsdp, recompute", 1, count)


def _traffic(
    model: ModelConfig, config: PlanConfig, count: int, machine: Machine, layout: str | None, rows: int
) -> float:
    """Hold the time of a step's communication on the slowest link beside the time of its arithmetic."""
    if count == 1:
        return 0.0
    link = machine.link_gb_s if count <= machine.per_host else machine.network_gb_s
    passes = max(1, round(config.batch_tokens / (count * rows * config.context)))
    around = 2.0 * (count - 1) / count  # a sum over all goes round twice: Thakur et al. 2005
    sent = around * 4.0 * model.parameters()
    if layout != "ddp":  # weights twice in bfloat16 each pass, gradients once a step
        sent = (count - 1) / count * model.parameters() * (2 * 2.0 * passes + 4.0)
    step_s = (
        config.batch_tokens * model.flops_per_token(config.context) / (count * machine.flops * config.mfu)
    )
    return sent / (link * 1e9) / step_s


# --- failures ---


def checkpoint_interval(write_s: float, failure_s: float) -> float:
    """Give the seconds between checkpoints that lose the least time.

    Source: Daly 2006, Future Generation Computer Systems 22(3), eq. 37; its first term is Young's of 1974.
    """
    if write_s >= 2 * failure_s:
        return failure_s
    share = write_s / (2 * failure_s)
    return math.sqrt(2 * write_s * failure_s) * (1 + math.sqrt(share) / 3 + share / 9) - write_s


def _effective(write_s: float, interval_s: float, failure_s: float, restart_s: float) -> float:
    """Give the share of the time in which training gets on: less writing, less what a failure loses and takes."""
    lost = (interval_s / 2 + restart_s) / failure_s
    return max(0.01, interval_s / (interval_s + write_s) * (1 - min(0.99, lost)))


# --- measured ---


def _this_processor() -> Machine:
    device = torch.device("cpu")
    return Machine(peak_flops(device, pick_dtype(device)), 64, 20, 10, 1, 1)


def _check(folder: Path, mfu: float) -> Check:
    """Hold a run beside the plan for its model on its machine, whose peak follows from the MFU it logged."""
    run = Run.open(folder)
    model = load_model(run.model_path, device="cpu").config
    speeds = [value for _, value in run.series("tokens_per_s")][1:] or [run.last("tokens_per_s")]
    shares = [value for _, value in run.series("mfu")][1:] or [run.last("mfu")]
    speed, reached = sorted(speeds)[len(speeds) // 2], sorted(shares)[len(shares) // 2]
    peak = speed * model.flops_per_token() / reached
    return Check(
        str(folder),
        int(run.manifest["parameters"]),
        model.parameters(),
        speed,
        peak * mfu / model.flops_per_token(),
        reached,
    )
