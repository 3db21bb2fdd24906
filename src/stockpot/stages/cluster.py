"""What pretraining will take on machines that are not here: parameters, arithmetic, memory by part, layout, days, failures.

Everything follows from a model's parameters, data sheets and one assumption that is stated, the share of the peak that is
reached (MFU); runs that were measured can be held beside it. It touches no device and trains nothing. What a process
holds and sends is `shares`' business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from stockpot.config import Settings
from stockpot.device import peak_flops, pick_dtype
from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import ModelConfig
from stockpot.run import Run
from stockpot.stages.machines import FAILURE_DAYS, MACHINES, Machine, devices_of
from stockpot.stages.shares import Census, Share, State, Way, sent, share
from stockpot.stages.sizes import sized
from stockpot.train.optim import OptimConfig
from stockpot.train.parallel import ParallelConfig
from stockpot.weights.store import load_model

__all__ = ["Check", "ClusterPlan", "Option", "PlanConfig", "checkpoint_interval", "plan"]

USABLE = 0.92  # of a device's memory: the rest is the driver's, the communication's, and fragments
DAY = 86_400.0
NEARLY = 1.1  # a simpler layout may take this many times the least time of a step
AGAIN = 4 / 3  # the work of a step whose layers are computed again, over that of one whose are kept
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
    parallel: ParallelConfig | None = Field(
        None, description="a layout, as loop.parallel; none: the simplest that fits and is fast"
    )
    optimizer: Literal["muon", "adamw"] = Field("muon", description="as of loop.optimizer")
    moments: Literal["float32", "bfloat16"] = Field("float32", description="as of loop.moments")
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
class Option:
    """One layout on the devices.

    Attributes:
        layout: its name.
        rows: of a micro-batch on each device; the most that fit, or 1.
        accumulate: micro-batches of a step on each device.
        share: memory of a device.
        fits: whether the device has that much.
        sent_gb: what a device sends in a step.
        layers_s: the time that sums within layers take at the stated speed of the links.
        readers_s: that of gradients and weights, which can go on beside the arithmetic.
        step_s: the time of a step's arithmetic.
    """

    layout: str
    recompute: bool
    rows: int
    accumulate: int
    share: Share
    fits: bool
    sent_gb: float
    layers_s: float
    readers_s: float
    step_s: float

    @property
    def time_s(self) -> float:
        """What a step takes, at least."""
        return max(self.step_s, self.readers_s) + self.layers_s

    @property
    def traffic_share(self) -> float:
        """Time that a step's communication takes over that of its arithmetic."""
        return (self.layers_s + self.readers_s) / self.step_s

    def row(self) -> list[Any]:
        """Lay out as a row of a table, with the names of `HEADERS`."""
        gib = [f"{value / 2**30:.2f}" for value in (*asdict(self.share).values(), self.share.total)]
        traffic = f"{self.sent_gb:.1f} GB, {(self.layers_s + self.readers_s) * 1000:,.0f} ms"
        step = f"{self.time_s * 1000:,.0f} ms"
        return [
            self.layout,
            f"{self.rows} x {self.accumulate}",
            *gib,
            "yes" if self.fits else "no",
            traffic,
            step,
        ]


HEADERS = ("layout", "rows", *(one.name for one in fields(Share)), "GiB", "fits", "sent", "step")


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
        layout: the one that was asked for, else the simplest that fits unless another one that does is faster by a tenth;
            None: it does not fit.
        because: why this one.
        rows: of a micro-batch on each device.
        accumulate: micro-batches of a step on each device.
        traffic_share: time that a step's communication takes, over the time of its arithmetic; what is above 1 cannot be
            hidden behind it, and sums within layers never can.
        options: all layouts that were looked at, the simplest first.
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
    because: str
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
    options: tuple[Option, ...]
    checks: tuple[Check, ...] = ()

    @property
    def effective_days(self) -> float:
        """Days with failures and checkpoints."""
        return self.days / self.effective

    def facts(self) -> dict[str, Any]:
        """Lay out what a person wants to read."""
        of = "" if self.device_gib is None else f" of {self.device_gib:.0f}"
        parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in asdict(self.share).items())
        layout = self.layout or "does not fit"
        return {
            "model": f"{self.layers} layers, {self.dim} wide, {self.parameters / 1e6:,.1f} M parameters",
            "tokens": f"{self.tokens / 1e9:,.3f} B ({self.tokens / self.parameters:.1f} a parameter)",
            "arithmetic": f"{self.flops:.3g} FLOP",
            "devices": self.devices,
            "layout": f"{layout}: {self.because}",
            "step": f"{self.rows} rows at once, {self.accumulate} times a step, on each device",
            "memory": f"{self.share.total / 2**30:.2f}{of} GiB a device: {parts}",
            "speed": f"{self.tokens_per_s:,.0f} tokens/s at an MFU of {self.mfu:.0%} (assumed)",
            "time": f"{_figure(self.days)} days ({_figure(self.days * 24)} hours)",
            "traffic": f"{self.traffic_share:.0%} of the arithmetic's time",
            "checkpoint": f"{self.checkpoint_gb:,.2f} GB, {self.write_s:,.1f} s to write, every {self.interval_s / 60:,.0f} min",
            "failures": f"one in {_figure(self.failure_days)} days",
            "effective": f"{self.effective:.1%} of the time: {_figure(self.effective_days)} days in all",
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
    census = Census(model)
    parameters = census.numbers()
    tokens = config.tokens or config.tokens_per_parameter * parameters
    options = [_option(way, census, config, count, machine) for way in _ways(config, census, count, machine)]
    if not options:
        raise _too_small(config, count)
    chosen, because = _chosen(options, config)
    flops = model.flops_per_token(config.context)
    speed = count * machine.flops * config.mfu / flops / (AGAIN if chosen.recompute else 1)
    days = tokens / speed / DAY
    saved = 4.0 * parameters + _state(config).saved(census)
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
        share=chosen.share,
        device_gib=None if name == "cpu" else machine.memory_gib,
        layout=chosen.layout if chosen.fits else None,
        because=because,
        rows=chosen.rows,
        accumulate=chosen.accumulate,
        tokens_per_s=speed,
        mfu=config.mfu,
        days=days,
        traffic_share=chosen.traffic_share,
        checkpoint_gb=saved / 1e9,
        write_s=write_s,
        failure_days=failure_days,
        interval_s=interval,
        effective=_effective(write_s, interval, failure_days * DAY, config.restart_minutes * 60),
        options=tuple(options),
        checks=tuple(_check(Path(one), config.mfu) for one in runs),
    )


# --- layouts ---


def _state(config: PlanConfig) -> State:
    return State(
        OptimConfig(optimizer=config.optimizer, moments=config.moments), gathers=config.devices != "cpu"
    )


def _ways(config: PlanConfig, census: Census, count: int, machine: Machine) -> Iterator[Way]:
    """Yield the layouts that are possible, the simplest first, or the one that is asked for."""
    if config.parallel is not None:
        way = Way.of(config.parallel, count)
        if way.kind == "tensor" and (fault := census.fault(way.layer_processes)) is not None:
            raise ConfigError(
                f"parallel.kind = 'tensor' splits each layer over {way.layer_processes} processes, but {fault}.",
                "Choose another parallel.layer_processes, or kind = 'fsdp', which splits any model.",
            )
        ways = [way]
    else:
        halves = [1 << power for power in range(1, min(count, machine.per_host).bit_length())]
        sharing = [n for n in halves if count % n == 0 and census.fault(n) is None]
        ways = [Way("ddp")]
        ways += [Way("fsdp"), Way("fsdp", recompute=True)] if count > 1 else [Way("ddp", recompute=True)]
        ways += [Way("tensor", n, again) for again in (False, True) for n in sharing]
    for way in ways:
        if config.batch_tokens >= count // way.layer_processes * config.context:
            yield way


def _too_small(config: PlanConfig, count: int) -> ConfigError:
    return ConfigError(
        f"batch_tokens = {config.batch_tokens:,} is less than a row of {config.context} tokens for each of {count} devices.",
        f"Give at least {count * config.context:,}.",
    )


def _option(way: Way, census: Census, config: PlanConfig, count: int, machine: Machine) -> Option:
    """Find the largest micro-batch that fits, and what a step sends with it."""
    readers = count // way.layer_processes
    most = max(1, config.batch_tokens // (readers * config.context))
    room, state = machine.memory_gib * USABLE * 2**30, _state(config)
    rows = 1 << (most.bit_length() - 1)
    while True:
        tokens, passes = (
            rows * config.context,
            max(1, round(config.batch_tokens / (readers * rows * config.context))),
        )
        held = share(census, way, count, tokens=tokens, passes=passes, state=state)
        fits = held.total <= room
        if rows == 1 or (fits and tokens <= MOST_AT_ONCE):
            break
        rows //= 2
    bytes_sent = sent(census, way, count, tokens=tokens, passes=passes, state=state)
    near, far = machine.link_gb_s * 1e9, machine.network_gb_s * 1e9
    of_layers = near if way.layer_processes <= machine.per_host else far
    of_readers = near if count <= machine.per_host else far
    work = (
        config.batch_tokens * census.config.flops_per_token(config.context) * (AGAIN if way.recompute else 1)
    )
    return Option(
        layout=way.told(count),
        recompute=way.recompute,
        rows=rows,
        accumulate=passes,
        share=held,
        fits=fits,
        sent_gb=(bytes_sent.layers + bytes_sent.readers) / 1e9,
        layers_s=bytes_sent.layers / of_layers,
        readers_s=bytes_sent.readers / of_readers,
        step_s=work / (count * machine.flops * config.mfu),
    )


def _chosen(options: Sequence[Option], config: PlanConfig) -> tuple[Option, str]:
    """Choose the simplest that fits and is nearly as fast as any that does, and say why; else what needs least."""
    able = [one for one in options if one.fits]
    if not able:
        least = min(options, key=lambda one: one.share.total)
        return least, f"{least.layout} needs least of each; take more or larger devices"
    if config.parallel is not None:
        return able[0], "as asked"
    fastest = min(one.time_s for one in able)
    chosen = next(one for one in able if one.time_s <= NEARLY * fastest)
    before = options[: options.index(chosen)]
    missed = [
        f"{one.layout} takes {one.time_s / chosen.time_s:.1f} times as long"
        if one.fits
        else f"{one.layout} needs {one.share.total / 2**30:.0f} GiB"
        for one in before
    ]
    return chosen, "; ".join(["the simplest that fits", *missed])


# --- failures ---


def checkpoint_interval(write_s: float, failure_s: float) -> float:
    """Give the seconds between checkpoints that lose the least time.

    Source: Daly 2006, Future Generation Computer Systems 22(3), eq. 37; its first term is Young's of 1974.
    """
    if write_s >= 2 * failure_s:
        return failure_s
    share = write_s / (2 * failure_s)
    return math.sqrt(2 * write_s * failure_s) * (1 + math.sqrt(share) / 3 + share / 9) - write_s


def _figure(value: float) -> str:
    """Write a number in three digits, never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
    if not run.series("mfu") or "parameters" not in run.manifest:
        raise CheckpointError(
            f"{folder} says nothing of its speed (stage: {run.manifest['stage']}, status: {run.status}).",
            "Name a run of pretraining on a machine whose peak is known.",
        )
    model = load_model(run.model_path, device="cpu").config
    speeds = [value for _, value in run.series("tokens_per_s")][1:] or [run.last("tokens_per_s")]
    shares = [value for _, value in run.series("mfu")][1:] or [run.last("mfu")]
    speed, reached = sorted(speeds)[len(speeds) // 2], sorted(shares)[len(shares) // 2]
    return Check(
        str(folder),
        int(run.manifest["parameters"]),
        model.parameters(),
        speed,
        speed * mfu / reached,
        reached,
    )
