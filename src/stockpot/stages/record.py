"""What a training run leaves for a reader: samples beside the curve, and a page about the run.

`sample_writer` keeps what the model writes at each validation, `write_page` sums the run up in ``report.md``. Both only
read: the run's files, the model as it is, and the first validation batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.config import Settings, flatten
from stockpot.data.batch import IGNORED, Batch
from stockpot.durable import write_atomically
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import reading_only
from stockpot.generate.request import Sampling
from stockpot.model.adapters import writer_of
from stockpot.origin import as_typed
from stockpot.run import Run
from stockpot.stages.assemble import Progress
from stockpot.stages.report import curve_chart
from stockpot.text.tokenizer import Tokenizer

__all__ = ["sample_text", "sample_writer", "write_page"]

ROWS = 3
PROMPT_TOKENS, ANSWER_TOKENS = 12, 48


# --- samples ---


def sample_writer(run: Run, bundle: Bundle, validation: Iterable[Batch], report: Progress) -> Progress:
    """Wrap ``report`` so that each validation also leaves ``samples/step-….txt`` in the run folder."""

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "validated":
            run.sample(event["step"], sample_text(bundle, validation))
        else:
            report(event)

    return listen


def sample_text(bundle: Bundle, batches: Iterable[Batch]) -> str:
    """Show what a model makes of the first rows of some batches, in plain text; random streams are left alone.

    A decoder goes on from the beginning of a text, or answers a conversation; an encoder names the hidden tokens; an
    encoder-decoder fills the missing spans.
    """
    bundle = replace(bundle, model=writer_of(bundle.model))
    show = {"decoder": _continued, "encoder": _restored, "encoder_decoder": _refilled}[
        bundle.model.config.shape
    ]
    shown: list[str] = []
    with torch.compiler.set_stance("force_eager"):  # else a growing cache is compiled anew for each length
        for batch in batches:
            shown += show(bundle, batch.to(bundle.model.device), ROWS - len(shown))
            if len(shown) >= ROWS:
                break
    return "\n\n".join(shown) + "\n"


def _continued(bundle: Bundle, batch: Batch, rows: int) -> list[str]:
    prompts: list[list[int]] = []
    wanted, is_answer = [], False
    for row in range(len(batch.ids)):
        ids, labels = _first_document(batch, row)
        counted = (labels != IGNORED).nonzero()
        if len(prompts) == rows or not len(counted):  # a piece of a single token has nothing to predict
            continue
        first = int(counted[0, 0])
        is_answer = is_answer or first > 0
        count = first + 1 if first else min(PROMPT_TOKENS, len(ids))
        prompts.append(ids[:count].tolist())
        wanted.append(ids[count : count + ANSWER_TOKENS])
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0 if is_answer else 0.8, seed=0)
    room = [prompt[-(bundle.context - 1) :] for prompt in prompts]
    return [
        f"prompt   {_line(bundle.tokenizer, prompt)}\nwritten  {_one_line(made.text)}\ntrue     {_line(bundle.tokenizer, true)}"
        for prompt, made, true in zip(prompts, Engine(bundle).generate(room, sampling), wanted, strict=True)
    ]


def _first_document(batch: Batch, row: int) -> tuple[Tensor, Tensor]:
    """Cut a row's first document out of a packed row: its ids and labels."""
    ids, labels = batch.ids[row], batch.labels[row]
    if batch.attention_mask is not None:
        numbers = batch.attention_mask[row]
        kept = (numbers == numbers[0]) & (numbers != 0)
        ids, labels = ids[kept], labels[kept]
    return ids, labels


def _restored(bundle: Bundle, batch: Batch, rows: int) -> list[str]:
    model, tokenizer = bundle.model, bundle.tokenizer
    shown = []
    with reading_only(model):
        output = model(
            batch.ids[:rows],
            attention_mask=None if batch.attention_mask is None else batch.attention_mask[:rows],
            segments=None if batch.segments is None else batch.segments[:rows],
        )
        guesses = output.logits.argmax(-1)
    for row in range(len(guesses)):
        ids, labels = _first_document(batch, row)
        guess = guesses[row][: len(ids)]
        pieces: list[str] = []
        for at in range(min(len(ids), 8 * PROMPT_TOKENS)):
            if labels[at] == IGNORED:
                pieces.append(tokenizer.decode([int(ids[at])], skip_special=True))
                continue
            said, true = (_one_line(tokenizer.decode([int(one)])) for one in (guess[at], labels[at]))
            pieces.append(f" [{said.strip()}]" if said == true else f" [{said.strip()} ≠ {true.strip()}]")
        shown.append(_one_line("".join(pieces)))
    return shown


def _refilled(bundle: Bundle, batch: Batch, rows: int) -> list[str]:
    assert batch.source is not None  # an encoder-decoder's batch has one
    sources, wanted = [], []
    for row in range(min(rows, len(batch.ids))):
        real = slice(None) if batch.source_mask is None else batch.source_mask[row].bool()
        sources.append(batch.source[row][real].tolist())
        wanted.append(batch.labels[row][batch.labels[row] != IGNORED])
    sampling = Sampling(max_tokens=min(ANSWER_TOKENS, bundle.context - 1), temperature=0.0)
    written = Engine(bundle).generate(sources, sampling)
    tokenizer = bundle.tokenizer
    return [
        f"source   {_line(tokenizer, source)}\nwritten  {_line(tokenizer, made.ids)}\ntrue     {_line(tokenizer, true)}"
        for source, made, true in zip(sources, written, wanted, strict=True)
    ]


def _line(tokenizer: Tokenizer, ids: Any) -> str:
    return _one_line(tokenizer.decode([int(one) for one in ids]))


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))


# --- the page ---


def write_page(run: Run, bundle: Bundle, config: Settings) -> Path:
    """Write ``report.md`` and its curve, ``report.svg``, into a finished run's folder; return the page."""
    metric, unit = _headline(run)
    curves = {
        name: run.series(f"{side}/{metric}") for name, side in (("training", "train"), ("validation", "val"))
    }
    shown = {name: points for name, points in curves.items() if points}
    chart = curve_chart(shown, x="step", y=unit, title=f"{run.path.name}: {unit} by step")
    write_atomically(run.path / "report.svg", chart)
    page = run.path / "report.md"
    write_atomically(page, "\n".join(_lines(run, bundle, config, metric, unit)) + "\n")
    return page


def _finite(run: Run, name: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value in run.series(name) if math.isfinite(value)]


def _headline(run: Run) -> tuple[str, str]:
    if run.manifest["stage"] == "pretrain" and run.series("train/bits_per_byte"):
        return "bits_per_byte", "bits per byte"
    return "loss", "nats per token"


def _lines(run: Run, bundle: Bundle, config: Settings, metric: str, unit: str) -> Iterator[str]:
    manifest, model = run.manifest, bundle.model.config
    tokens = run.series("tokens")
    yield f"# {manifest['stage']}: {run.path.name}\n"
    yield (
        f"{model.shape.replace('_', '-').capitalize()}, {model.main.layers} layers, {model.parameters():,} parameters; "
        f"{tokens[-1][1] if tokens else 0:,.0f} tokens read in "
        f"{run.last('time_s') / 60 if run.series('time_s') else 0:.1f} minutes. Started {manifest['started']}.\n"
    )
    yield f"![{unit} by step](report.svg)\n"
    yield "| measure | first | last | best |\n|---|---:|---:|---:|"
    names = [name for name in (metric, "loss", "accuracy", "pair_accuracy") if run.series(f"val/{name}")]
    for name in dict.fromkeys(names):
        values = [value for _, value in _finite(run, f"val/{name}")] or [math.nan]
        best: Callable[..., float] = max if "accuracy" in name else min
        yield f"| validation {name.replace('_', ' ')} | {values[0]:.4g} | {values[-1]:.4g} | {best(values):.4g} |"
    yield "\n## Data\n"
    for one in manifest["data"]:
        yield f"* `{one['path']}`" + (
            f", {one['bytes']:,} bytes, sha256 {one['sha256'][:12]}…" if "sha256" in one else ""
        )
    yield "\n## Settings\n\nThose that are not the defaults; all of them stand in `recipe.toml`.\n"
    for key, value in flatten(config.model_dump(mode="json", exclude_defaults=True)).items():
        yield f"* `{key} = {value}`"
    samples = sorted((run.path / "samples").glob("step-*.txt"))
    if samples:
        yield f"\n## What it writes ({samples[-1].stem.replace('-', ' ')})\n\n```text"
        yield samples[-1].read_text(encoding="utf-8").rstrip() + "\n```"
    again = as_typed("stockpot", manifest["stage"], "--recipe", run.path / "recipe.toml")
    yield f"\n## Again\n\n```bash\n{again} --out runs/again\n```"
