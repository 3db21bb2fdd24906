"""Check what a cook left behind: the report exists, stands alone, the stages are done, and the roads were judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
report = (folder / "report.html").read_text(encoding="utf-8")
assert "<html" in report and "default-src 'none'" in report, "report.html is not a page that stands alone"
for stage in ("pretrain", "sft", "reward", "dpo", "ppo"):
    manifest = json.loads((folder / stage / "manifest.json").read_text(encoding="utf-8"))
    may_stop = (
        stage == "ppo" and (folder / stage / "model").exists()
    )  # a policy that collapses is stopped, and judged as saved
    assert manifest["status"] == "done" or may_stop, (stage, manifest["status"])
figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
names = [stage["name"] for stage in figures["stages"]]
STAGES = [
    "tokenizer",
    "pretrain",
    "ladder",
    "sft",
    "rank",
    "reward",
    "dpo",
    "ppo",
    "contest",
    "evaluate",
    "ledger",
]
assert names == STAGES, names
rows = figures["alignment"]["rows"]
assert {row["judge"] for row in rows} == {"gold", "reward model"}, "the roads were not judged by both"
for row in rows:
    for figure in (row["rating"], row["wins"]):
        assert figure is None or figure["low"] <= figure["value"] <= figure["high"], row
    assert row["rating"]["n"] > 0, row
assert {row["model"] for row in figures["alignment"]["tax"]} == {"after DPO", "after PPO"}
pictures = (
    "ledger, ladder, pretraining, tuning, scores, the two roads, PPO's course, layers, attention, lineage"
)
assert report.count("<svg") == len(pictures.split(", ")), pictures
lines = json.loads((folder / "ledger" / "ledger.json").read_text(encoding="utf-8"))["lines"]
assert lines[0]["name"] == "random model" and lines[-1]["name"] == "+ RLHF", [line["name"] for line in lines]
print(f"cook left {len(figures['stages'])} stages and a report of {len(report) // 1024} kB")
for row in rows:
    won = "" if row["wins"] is None else f", wins {row['wins']['value']:.0%}"
    print(f"  {row['model']}, judge {row['judge']}: {row['rating']['value']:.2f}{won}")
