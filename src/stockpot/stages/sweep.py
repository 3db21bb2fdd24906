"""Many small runs and what they say about a larger one: a scaling law with intervals, and isoFLOP curves.

Trains every size at every length, each with its own schedule, on the same data; fits the law to all but the one that is kept
to check; and says what the next size would reach. Runs that are done are kept, so that the same command goes on after an
interruption. Every run is an ordinary pretraining run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt, field_validator, model_validator

from stockpot.config import Settings, read_recipe
from stockpot.data.sources import fingerprint_sources
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError, DataError
from stockpot.model.config import ModelConfig, decoder
from stockpot.run import Run, is_run
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.stages.laws import Law, Point, fit_law, resampled
from stockpot.stages.pretrain import PretrainConfig, pretrain
from stockpot.stages.report import curve_chart
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig
from stockpot.workers import in_order

__all__ = ["SweepConfig", "SweepReport", "sweep"]


SHAPE = re.compile(r"[1-9]\d*x[1-9]\d*")


class SweepConfig(Settings):
    """Which runs are made."""

    data: tuple[str, ...] = Field(
        ("village",), description="files, folders, patterns, data-set ids, or village[:SEED]"
    )
    tokenizer: str | None = Field(None, description="folder of a tokenizer, the same for all runs")
    sizes: tuple[str, ...] = Field(
        ("1x48", "2x64", "2x96", "3x128"), description="models, as LAYERSxWIDTH", min_length=3
    )
    tokens: tuple[PositiveInt, ...] = Field(
        (250_000, 500_000, 1_000_000), description="lengths of training", min_length=3
    )
    kept: str | None = Field(
        "4x192:2000000", description="LAYERSxWIDTH:TOKENS that checks the law; none: no check"
    )
    context: int = Field(128, ge=8, description="tokens of a row")
    loop: LoopConfig = Field(
        default_factory=lambda: LoopConfig(batch_tokens=4096),
        description="batch and optimizer; steps follow from tokens",
    )
    rates: tuple[float, ...] | None = Field(
        None, description="learning rate of each size, the kept one's last; none: the loop's"
    )
    val_tokens: int = Field(65_536, ge=1, description="validate on at most this many tokens")
    draws: int = Field(200, ge=20, description="fits for an interval")
    seed: int = Field(0, ge=0, description="of weights and order")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")
    workers: int = Field(1, ge=1, description="runs at the same time, on this machine")
    ray: str | None = Field(None, description="address of a Ray cluster, or auto; none: this machine")

    _sources = field_validator("data", mode="before")(as_sources)

    @field_validator("sizes")
    @classmethod
    def _shaped(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not SHAPE.fullmatch(one):
                raise ValueError(f"{one!r} is not LAYERSxWIDTH, such as 2x64")
        return value

    @field_validator("kept")
    @classmethod
    def _kept_shaped(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(rf"{SHAPE.pattern}(:[1-9]\d*)?", value):
            raise ValueError(f"{value!r} is not LAYERSxWIDTH:TOKENS, such as 4x192:2000000")
        return value

    @model_validator(mode="after")
    def _fits(self) -> SweepConfig:
        if twice := [one for one, times in Counter(self.runs()).items() if times > 1]:
            raise ValueError(f"{twice[0][0]} with {twice[0][1]:,} tokens is there twice")
        if self.rates is not None and len(self.rates) != len(self.sizes) + bool(self.kept):
            raise ValueError(
                f"rates has {len(self.rates)} numbers; there are {len(self.sizes)} sizes and what is kept"
            )
        return self

    def runs(self) -> list[tuple[str, int]]:
        """List what is trained: size and tokens, the kept one last."""
        found = [(size, tokens) for size in self.sizes for tokens in self.tokens]
        if self.kept:
            size, _, tokens = self.kept.partition(":")
            found.append((size, int(tokens or max(self.tokens))))
        return found

    def rate(self, size: str) -> float | None:
        """Return the learning rate of a size; None: the loop's."""
        named = [*self.sizes, (self.kept or "").partition(":")[0]]
        return None if self.rates is None else self.rates[named.index(size)]

    def settings(self, size: str, tokens: int) -> PretrainConfig:
        """Return the settings of one run."""
        layers, dim = (int(one) for one in size.split("x"))
        vocab_size = Tokenizer.load(self.tokenizer).vocab_size if self.tokenizer else 1
        heads = max(1, dim // 32)
        model = decoder(layers=layers, dim=dim, heads=heads, context=self.context, vocab_size=vocab_size)
        steps = max(1, round(tokens / self.loop.batch_tokens))
        every = {"validate_every": steps, "checkpoint_every": steps, "keep": 1}
        rate = {"lr": self.rate(size) or self.loop.lr}
        loop = self.loop.model_copy(update={"steps": steps} | every | rate)
        return PretrainConfig(
            data=self.data,
            tokenizer=self.tokenizer,
            model=model,
            loop=loop,
            val_tokens=self.val_tokens,
            seed=self.seed,
            device=self.device,
        )


@dataclass(frozen=True)
class SweepReport:
    """What the runs say.

    Attributes:
        points: the runs the law is fitted to.
        law: fitted to them.
        intervals: name of each of its numbers → 95 % interval.
        kept: the run that was kept, what the law said of it, and the 95 % interval of that.
        largest: width of the relative errors of the fit: the largest.
    """

    points: tuple[Point, ...]
    law: Law
    intervals: dict[str, tuple[float, float]]
    kept: tuple[Point, float, tuple[float, float]] | None
    largest: float
    folder: Path

    def __str__(self) -> str:
        law = self.law
        size, data = (
            f"{law.size_factor:.3g} / N^{law.alpha:.3f}",
            f"{law.data_factor:.3g} / D^{law.beta:.3f}",
        )
        numbers = f"L(N, D) = {law.floor:.3f} + {size} + {data}"
        ranges = ", ".join(f"{name} {low:.3f}–{high:.3f}" for name, (low, high) in self.intervals.items())
        lines = [
            f"{len(self.points)} runs",
            numbers,
            f"95 % intervals: {ranges}",
            f"largest error {self.largest:.2%}",
        ]
        if self.kept is not None:
            point, said, (low, high) = self.kept
            lines.append(
                f"kept to check: N = {point.parameters:,.0f}, D = {point.tokens:,.0f}: measured {point.loss:.4f}, "
                f"predicted {said:.4f} ({low:.4f}–{high:.4f}), off by {point.loss / said - 1:+.2%}"
            )
        return "\n".join(lines)


def sweep(config: SweepConfig, *, out: str | Path, progress: Progress | None = None) -> SweepReport:
    """Train every size at every length, fit a scaling law, and write ``sweep.json``, ``report.md`` and charts into ``out``.

    Raises:
        ConfigError, DataError: before any work, if something does not fit, or ``out`` holds another sweep.
        TrainError: if a run cannot go on.
    """
    report, out = progress or silent, Path(out)
    if config.tokenizer is None:
        raise ConfigError("A sweep needs one tokenizer for all runs.", "Give it with --tokenizer.")
    wanted = config.runs()
    folders = [str((out / "runs" / f"{size}-{tokens}").resolve()) for size, tokens in wanted]
    settings = [config.settings(size, tokens) for size, tokens in wanted]
    data = fingerprint_sources(config.data)
    for one, folder in zip(settings, folders, strict=True):
        _check_same(Path(folder), one, data)
    jobs = [(one.model_dump(), folder) for one, folder in zip(settings, folders, strict=True)]
    points: list[Point] = []
    done = in_order(_run, jobs, workers=config.workers, ray=config.ray)
    for number, (found, (size, tokens)) in enumerate(zip(done, wanted, strict=True), 1):
        points.append(Point(*found))
        text = f"{number}/{len(jobs)}: {size}, {tokens:,} tokens: loss {points[-1].loss:.4f}"
        report({"kind": "note", "text": text})
    return _write(out, config, points)


def _check_same(folder: Path, config: PretrainConfig, data: list[dict[str, Any]]) -> None:
    """Refuse a finished run of other settings or other data: its loss is no point of this sweep."""
    if not is_run(folder) or (run := Run.open(folder)).status != "done":
        return
    kept = PretrainConfig(**read_recipe(folder / "recipe.toml")["pretrain"])
    if kept.model_copy(update={"device": config.device}) != config or run.manifest["data"] != data:
        raise ConfigError(
            f"{folder} is a run of another sweep: its settings or its data are not these.",
            "Give another --out, or delete it.",
        )


def _run(job: tuple[dict[str, Any], str], _shared: None = None) -> tuple[float, float, float]:
    """Make one run, or take up what there is of it; returns parameters in products, tokens seen, loss."""
    settings, folder = job
    config = PretrainConfig(**settings)
    run = Run.open(folder) if is_run(folder) else None
    if run is None or run.status != "done":
        run = pretrain(config, out=folder, resume=run is not None)
    assert config.model is not None
    return products(config.model), run.last("tokens"), run.last("val/loss")


def products(model: ModelConfig) -> float:
    """Count the parameters that every token is multiplied with, the output matrix among them."""
    stacks = (stack.matrix_parameters() for stack in (model.encoder, model.decoder) if stack is not None)
    return float(sum(stacks) + model.vocab_size * model.dim)


# --- what they say ---


def _write(out: Path, config: SweepConfig, points: list[Point]) -> SweepReport:
    fitted = points[:-1] if config.kept else points
    law, drawn = fit_law(fitted), resampled(fitted, draws=config.draws, seed=config.seed)
    if len(drawn) < config.draws // 2:
        raise DataError("Too few draws settle a law.", "Give more sizes and lengths.")
    names = ("floor", "alpha", "beta")
    intervals = {name: _interval([getattr(one, name) for one in drawn]) for name in names}
    kept = None
    if config.kept:
        last = points[-1]
        said = [one.loss(last.parameters, last.tokens) for one in drawn]
        kept = (last, law.loss(last.parameters, last.tokens), _interval(said))
    largest = max(abs(p.loss / law.loss(p.parameters, p.tokens) - 1) for p in fitted)
    found = SweepReport(tuple(fitted), law, intervals, kept, largest, out)
    charts = {"runs.svg": _lengths(points)} | ({"isoflop.svg": _isoflop(law, fitted)} if law.trades else {})
    for name, chart in charts.items():
        write_atomically(out / name, chart)
    facts = {
        "points": [asdict(p) for p in points],
        "law": asdict(law),
        "intervals": intervals,
        "text": str(found),
    }
    write_atomically(out / "sweep.json", json.dumps(facts, indent=1))
    write_atomically(out / "report.md", "\n".join(_page(found, drawn)) + "\n")
    return found


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _budgets(points: Sequence[Point]) -> list[float]:
    spent = sorted(6 * p.parameters * p.tokens for p in points)
    return [float(one) for one in np.geomspace(spent[len(spent) // 4], spent[-1] * 10, 5)]


def _isoflop(law: Law, points: Sequence[Point]) -> str:
    """Draw what the law says of every size at the same arithmetic."""
    series: dict[str, list[tuple[float, float]]] = {}
    for flops in _budgets(points):
        best = law.best_size(flops)
        sizes = np.geomspace(best / 10, best * 10, 41)
        series[f"{flops:.1e} FLOP"] = [(float(np.log10(n)), law.loss(n, flops / 6 / n)) for n in sizes]
    return curve_chart(
        series, x="log10 parameters", y="loss, nats", title="Loss at equal arithmetic, by the law"
    )


def _lengths(points: Sequence[Point]) -> str:
    """Draw what was measured."""
    series: dict[str, list[tuple[float, float]]] = {}
    for p in sorted(points, key=lambda p: (p.parameters, p.tokens)):
        series.setdefault(f"{p.parameters:,.0f}", []).append((float(np.log10(p.tokens)), p.loss))
    return curve_chart(
        series, x="log10 tokens", y="loss, nats", title="Measured loss by parameters and tokens"
    )


def _page(found: SweepReport, drawn: Sequence[Law]) -> Iterator[str]:
    yield "# Scaling law\n\n```text\n" + str(found) + "\n```\n"
    yield "![measured](runs.svg)\n"
    if found.law.trades:
        yield "![isoFLOP](isoflop.svg)\n"
    yield "| parameters in products | tokens | loss | law |\n|---:|---:|---:|---:|"
    rows = [*found.points, *([found.kept[0]] if found.kept else [])]
    for p in rows:
        yield f"| {p.parameters:,.0f} | {p.tokens:,.0f} | {p.loss:.4f} | {found.law.loss(p.parameters, p.tokens):.4f} |"
    if not found.law.trades:
        yield "\nThese runs do not show that both parameters and tokens help; there is no best size by this law."
        return
    yield "\n## The next size\n\n| FLOP | best parameters | tokens | loss, 95 % interval |\n|---:|---:|---:|---|"
    for flops in _budgets(found.points):
        size = found.law.best_size(flops)
        low, high = _interval([one.loss(size, flops / 6 / size) for one in drawn])
        loss = found.law.loss(size, flops / 6 / size)
        yield f"| {flops:.2e} | {size:,.0f} | {flops / 6 / size:,.0f} | {loss:.4f} ({low:.4f}–{high:.4f}) |"
