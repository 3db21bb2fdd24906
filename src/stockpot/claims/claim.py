"""What a claim is: what others found, the miniature, the bar, and the verdict that its figures allow.

A finding is one figure over seeds with Student's 95 % interval, and the bound that the whole interval has to pass. A claim is
reproduced if all its findings pass, partly if some do, undecided where one seed alone speaks, and not computed where a figure
is no number. Nothing here knows a row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stockpot import origin
from stockpot.durable import write_atomically
from stockpot.errors import DataError
from stockpot.judge.metrics import student

__all__ = ["Claim", "Finding", "Material", "Result", "Verdict", "above", "below", "held", "run_claim"]

Verdict: TypeAlias = Literal["reproduced", "partly", "not reproduced", "undecided", "not computed"]


@dataclass(frozen=True)
class Finding:
    """One figure and whether it says what the claim says.

    Attributes:
        what: the figure, with its unit.
        value: mean over seeds; NaN or infinite where it could not be computed.
        low: lower end of the 95 % interval over seeds; equal to ``value`` where nothing is drawn at random.
        high: upper end.
        by_seed: one value a seed.
        n: items behind each value.
        bar: what the interval has to pass, in words.
        passes: whether it does.
    """

    what: str
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    n: int
    bar: str
    passes: bool


def above(what: str, values: Sequence[float], bound: float, *, n: int = 0) -> Finding:
    """Claim that a figure is above a bound: its whole interval over seeds has to be.

    >>> above("gain", [0.3, 0.4, 0.35], 0.0).passes
    True
    >>> above("gain", [0.3], 0.0).passes  # one seed has no interval
    False
    """
    mean, low, high = _interval(values)
    return Finding(what, mean, low, high, tuple(values), n, f"above {bound:g}", low > bound)


def below(what: str, values: Sequence[float], bound: float, *, n: int = 0) -> Finding:
    """Claim that a figure is below a bound."""
    mean, low, high = _interval(values)
    return Finding(what, mean, low, high, tuple(values), n, f"below {bound:g}", high < bound)


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Give the mean and both ends; a mean that is no finite number has no ends, and passes no bar."""
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values), math.nan, math.nan
    mean, half = student(values)
    return mean, mean - half, mean + half


def held(what: str, values: Sequence[float], *, n: int = 0) -> Finding:
    """Claim that something exact holds for each seed: 1 yes, 0 no."""
    every = min(values)
    return Finding(what, every, every, every, tuple(values), n, "holds each time", every == 1)


@dataclass(frozen=True)
class Material:
    """What claims are measured on.

    Attributes:
        cooks: folders of finished cooks, one a seed; claims about models share them.
        out: where a claim may leave its own runs; what is there is used as it is.
        minutes: for each claim that trains models of its own.
        seeds: of claims that need no cook.
        report: hears what is going on.
        told: sentences for the reader, such as how long a run took that was there already.
    """

    cooks: tuple[Path, ...]
    out: Path
    minutes: float = 4.0
    seeds: tuple[int, ...] = (0, 1, 2)
    report: Callable[[dict[str, Any]], None] = field(default=lambda event: None)
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """One row of what stockpot promises.

    Attributes:
        row: its number.
        name: what one types.
        title: in words.
        original: the figure others found, and the source.
        miniature: what is done here.
        measure: does it.
        remark: what to know when reading the figures, failures above all.
        needs_cooks: whether it is measured on cooks.
        on_base: whether it is about base models, so that cooks that share one count once.
        over: what each value of a finding stands for, as a plural.
    """

    row: int
    name: str
    title: str
    original: str
    miniature: str
    measure: Callable[[Material], Sequence[Finding]]
    remark: str = ""
    needs_cooks: bool = True
    on_base: bool = False
    over: str = "seeds"


@dataclass(frozen=True)
class Result:
    """What came of a claim, as it is kept."""

    name: str
    row: int
    verdict: Verdict
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]

    def save(self, folder: Path) -> Path:
        """Write ``NAME.json`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        value = asdict(self)
        for one in value["findings"]:  # JSON knows neither infinity nor NaN
            one |= {end: None for end in ("low", "high") if math.isinf(one[end])}
            one |= {name: _spelled(one[name]) for name in ("value", "low", "high")}
            one["by_seed"] = [_spelled(each) for each in one["by_seed"]]
        write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is no result.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            findings = tuple(_finding_of(one) for one in value.pop("findings"))
            return cls(findings=findings, **value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is no result of a claim: {error}.", "Run the claim again.") from error


def _spelled(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _finding_of(saved: dict[str, Any]) -> Finding:
    ends = {"low": -math.inf, "high": math.inf}
    known = {end: other if saved[end] is None else float(saved[end]) for end, other in ends.items()}
    by_seed = tuple(map(float, saved["by_seed"]))
    return Finding(**{**saved, **known, "value": float(saved["value"]), "by_seed": by_seed})


def run_claim(claim: Claim, material: Material) -> Result:
    """Measure a claim and judge it."""
    begun = time.monotonic()
    material.told.clear()
    findings = tuple(claim.measure(material))
    machine = origin.hardware()
    facts = {
        "made": origin.now(),
        "seconds": round(time.monotonic() - begun, 1),
        "told": list(material.told),
        "seeds": max(len(one.by_seed) for one in findings),
        "cooks": _cooks(material) if claim.needs_cooks else [],
        "cpu": machine.get("cpu"),
        "cores": machine.get("cores"),
        "commit": (origin.git() or {}).get("commit"),
        "versions": {name: one for name, one in origin.versions().items() if name in ("stockpot", "torch")},
    }
    return Result(claim.name, claim.row, _verdict(findings), findings, facts)


def _verdict(findings: Sequence[Finding]) -> Verdict:
    """Judge findings; what fails only because one seed has no interval is undecided."""
    if not all(math.isfinite(one.value) for one in findings):
        return "not computed"
    failed = [one for one in findings if not one.passes]
    if not failed:
        return "reproduced"
    if any(math.isinf(one.low) for one in failed):
        return "undecided"
    return "partly" if len(failed) < len(findings) else "not reproduced"


def _cooks(material: Material) -> list[dict[str, Any]]:
    """Say what each cook was, without naming a folder of this machine."""
    told = []
    for cook in material.cooks:
        state = json.loads((cook / "cook.json").read_text(encoding="utf-8"))
        base = json.loads((cook / "pretrain" / "manifest.json").read_text(encoding="utf-8"))
        tuned = cook / "sft" / "manifest.json"
        seed = (
            json.loads(tuned.read_text(encoding="utf-8")).get("seed") if tuned.is_file() else base.get("seed")
        )
        told.append(
            {
                "seed": seed,
                "base_seed": base.get("seed"),
                "parameters": base.get("parameters"),
                "minutes": round(sum(one.get("seconds", 0.0) for one in state.values()) / 60, 1),
            }
        )
    return told
