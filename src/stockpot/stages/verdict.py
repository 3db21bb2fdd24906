"""What a cook's report says of alignment: who wins by which judge, how far each model moved, and what it cost.

Every figure comes from the contest, the evaluation and the runs' own files; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stockpot.judge.harness import Report, Row, compare
from stockpot.judge.metrics import Estimate
from stockpot.run import Run
from stockpot.stages.contest import Contest
from stockpot.stages.report import panel_chart, path_chart

__all__ = ["alignment_charts", "alignment_figures", "reading"]

NAMES = {"sft": "after instruction tuning", "dpo": "after DPO", "ppo": "after PPO"}
OVER = (("reward", "reward"), ("gold", "true worth"), ("kl", "nats an answer"), ("length", "tokens"))


def reading(estimate: Estimate, *, chance: float = 0.0) -> str:
    """Say what an interval allows to say."""
    if estimate.low > chance:
        return "better"
    return "worse" if estimate.high < chance else "inside the noise"


def alignment_figures(folder: Path, contest: Contest, reports: Mapping[str, Report]) -> dict[str, Any]:
    """Gather what is shown, as plain values.

    Args:
        folder: of the cook.
        contest: between the models.
        reports: name → answers to the same questions.
    """
    rated = Run.open(folder / "reward").manifest
    rows = []
    for one in contest.entries:
        for judge in one.ratings:
            wins = contest.win_rate(one, judge)
            rows.append(
                {
                    "model": NAMES.get(one.model, one.model),
                    "judge": judge,
                    "rating": asdict(one.rating(judge)),
                    "wins": asdict(wins) if one is not contest.entries[0] else None,
                    "reading": reading(wins, chance=0.5) if one is not contest.entries[0] else "",
                    "kl": None if one.kl is None else asdict(one.kl),
                    "length": asdict(one.length),
                }
            )
    return {
        "rows": rows,
        "sentence": _sentence(contest),
        "reward_model": {
            "accuracy": rated.get("accuracy"),
            "calibration_error": rated.get("calibration_error"),
        },
        "tax": [
            {"model": NAMES[name], **_row(row)}
            for name in ("dpo", "ppo")
            if name in reports
            for row in compare(reports["tuned"], reports[name])
            if row.metric == "exact gain"
        ],
        "samples": [
            {
                "prompt": prompt,
                "replies": [
                    {"model": NAMES.get(one.model, one.model), "reply": one.replies[index]}
                    for one in contest.entries
                ],
            }
            for index, prompt in enumerate(contest.prompts[:4])
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    return {"task": row.task, **asdict(row.estimate), "reading": reading(row.estimate)}


def _sentence(contest: Contest) -> str:
    judge = next(iter(contest.entries[0].ratings))
    told = []
    for one in contest.entries[1:]:
        wins = contest.win_rate(one, judge)
        told.append(f"{one.model.upper()} wins {wins.value:.0%} [{wins.low:.0%}, {wins.high:.0%}]")
    return (
        f"Each model drew one answer to the same {len(contest.prompts)} prompts, which no training had seen. Against the model "
        f"after instruction tuning, by the judge “{judge}”, {' and '.join(told)}; 50% is no difference, a tie is half a win."
    )


def alignment_charts(folder: Path, contest: Contest) -> list[tuple[str, str, str]]:
    """Draw the worth of answers over the distance for both roads, and PPO's course."""
    judge = next(iter(contest.entries[0].ratings))
    series = "gold" if "gold" in contest.entries[0].ratings else "reward"
    start = (0.0, contest.entries[0].rating(judge).value)
    paths: dict[str, list[tuple[float, float]]] = {}
    for name in ("dpo", "ppo"):
        run = Run.open(folder / name)
        far, worth = dict(run.series("val/kl")), dict(run.series(f"val/{series}"))
        paths[name.upper()] = [
            start,
            *((far[step], worth[step]) for step in sorted(far.keys() & worth.keys())),
        ]
    ends = [
        {
            "series": one.model.upper(),
            "x": kl.value,
            "y": one.rating(judge).value,
            "low": one.rating(judge).low,
            "high": one.rating(judge).high,
        }
        for one in contest.entries[1:]
        if (kl := one.kl) is not None
    ]
    title = f"Mean rating by “{judge}” over the distance from the model before"
    svg = path_chart(paths, ends, x="KL divergence, nats an answer", y=f"rating by “{judge}”", title=title)
    text = "Lines: drawn answers during training; dots with 95 % intervals: the contest. Higher at the same distance is better."
    return [("One file of comparisons, two roads", svg, text), *_course(Run.open(folder / "ppo"))]


def _course(run: Run) -> Sequence[tuple[str, str, str]]:
    panels = {title: points for name, title in OVER if (points := run.series(f"train/{name}"))}
    svg = panel_chart(
        panels, x="step", title="PPO: what is rewarded, what is wanted, distance and length by step"
    )
    text = "Where the reward goes on rising while the true worth falls, the policy has learned to please the reward model only."
    return [("What PPO did: reward, true worth, distance, length", svg, text)]
