"""Report and lineage: where each served model comes from, run by run, and the report of the job that made it.

Only folders that lead here from the models named at the start are read. Of a report's HTML only plain elements leave, as lists,
without attributes; drawings leave as text that the page shows as images, in which nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from stockpot.errors import CheckpointError
from stockpot.run import Run, is_run
from stockpot.serve.protocol import Refusal
from stockpot.serve.service import Service

__all__ = ["lineage", "plain", "routes"]

MOST_BYTES = 8 << 20
DEEPEST = 40
SHOWN = ("stage", "status", "seed", "started", "ended", "command", "comparisons", "tokens")


def lineage(ref: str) -> list[dict[str, Any]]:
    """Follow a model back from run to run: what each stage was, on what, and how it ended; the model's own run is first."""
    return [
        {
            "path": str(path),
            "name": path.name,
            **{key: run.manifest[key] for key in SHOWN if run.manifest.get(key) is not None},
            "data": [one.get("path") for one in run.manifest.get("data") or () if isinstance(one, Mapping)],
        }
        for path, run in _runs(ref)
    ]


def _runs(ref: str) -> Iterator[tuple[Path, Run]]:
    seen: set[Path] = set()
    here: Path | None = Path(ref)
    while here is not None and here.exists():
        path = next((one for one in (here.resolve(), *here.resolve().parents[:3]) if is_run(one)), None)
        if path is None or path in seen:
            return
        seen.add(path)
        try:
            run = Run.open(path)
        except CheckpointError:
            return
        yield path, run
        parent = run.manifest.get("parent")
        here = Path(parent["path"]) if isinstance(parent, Mapping) and parent.get("path") else None


def _report(ref: str) -> Path | None:
    """Find the report of the job that made a model: in its run, or where its stages lie together."""
    for path, _ in _runs(ref):
        for folder in (path, path.parent):
            if (folder / "report.html").is_file():
                return folder / "report.html"
    return None


def routes(service: Service, refs: Mapping[str, str]) -> APIRouter:
    """Make the routes of Report; ``refs`` tells what each model was loaded from."""
    router = APIRouter(prefix="/v1/reports")

    @router.get("")
    def told() -> dict[str, Any]:
        """Tell of each model where it comes from, and whether there is a report."""
        named = [(name, refs.get(name, "")) for name in service.models]
        return {
            "models": [
                {
                    "name": name,
                    "source": ref,
                    "parameters": service.models[name].bundle.model.config.parameters(),
                    "lineage": lineage(ref) if ref else [],
                    "has_report": bool(ref) and _report(ref) is not None,
                }
                for name, ref in named
            ]
        }

    @router.get("/{name:path}")
    def report(name: str) -> dict[str, Any]:
        """Give what is plain in a model's report."""
        path = _report(refs[name]) if refs.get(name) else None
        if path is None:
            raise Refusal(404, f"There is no report of {name}.", code="not_found")
        if path.stat().st_size > MOST_BYTES:
            raise Refusal(400, f"The report of {name} is too large to show; open {path}.", code="too_large")
        return {"content": plain(path.read_text(encoding="utf-8", errors="replace")), "path": str(path)}

    return router


# --- HTML without anything that acts ---

KEPT = frozenset(
    (
        *(
            "h1",
            "h2",
            "h3",
            "h4",
            "p",
            "ul",
            "ol",
            "li",
            "dl",
            "dt",
            "dd",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        ),
        *(
            "pre",
            "code",
            "figure",
            "figcaption",
            "details",
            "summary",
            "blockquote",
            "strong",
            "em",
            "b",
            "i",
            "small",
        ),
        *("div", "section", "article", "span"),
    )
)
ALONE = frozenset(("br", "hr"))
SILENT = frozenset(
    (
        "script",
        "style",
        "template",
        "noscript",
        "iframe",
        "object",
        "embed",
        "math",
        "head",
        "title",
        "textarea",
        "select",
    )
)


def plain(html: str) -> list[Any]:
    """Turn HTML into nested lists: texts, ``[element, classes, *children]`` and ``["svg", label, drawing]``.

    Elements that are not plain are left out, their texts stay; what is no text for readers (scripts, styles) goes with them.
    """
    reader = _Plain()
    reader.feed(html)
    reader.close()
    return reader.found


class _Plain(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Any] = []
        self._open: list[tuple[str, list[Any]]] = []
        self._silent: list[str] = []
        self._drawing: list[str] = []
        self._label, self._inside = "", 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if self._inside or (tag == "svg" and not self._silent):
            self._inside += tag == "svg"
            if self._inside == 1 and tag == "svg":
                self._label = dict(attrs).get("aria-label") or "a chart"
            self._drawing.append(self.get_starttag_text() or "")
        elif tag in SILENT:
            self._silent.append(tag)
        elif not self._silent and tag in ALONE:
            self._here.append([tag, ""])
        elif not self._silent and tag in KEPT and len(self._open) < DEEPEST:
            name = dict(attrs).get("class") or ""
            made = [tag, name if name in ("number", "scroll") else ""]
            self._here.append(made)
            self._open.append((tag, made))

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if self._inside:
            self._drawing.append(self.get_starttag_text() or "")
        elif tag in ALONE:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            self._drawing.append(f"</{tag}>")
            self._inside -= tag == "svg"
            if not self._inside:
                self._here.append(["svg", self._label, "".join(self._drawing)])
                self._drawing = []
        elif tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        elif tag in [name for name, _ in self._open]:
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._drawing.append(escape(data))
        elif not self._silent:
            self._here.append(data)

    @property
    def _here(self) -> list[Any]:
        return self._open[-1][1] if self._open else self.found
