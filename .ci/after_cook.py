"""Check what a cook left behind: the report exists, stands alone, and the stages are done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
report = (folder / "report.html").read_text(encoding="utf-8")
assert "<html" in report and "default-src 'none'" in report, "report.html is not a page that stands alone"
for stage in ("pretrain", "sft"):
    manifest = json.loads((folder / stage / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "done", (stage, manifest["status"])
figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
assert figures["stages"], "report.json lists no stages"
print(f"cook left {len(figures['stages'])} stages and a report of {len(report) // 1024} kB")
