"""The ledger: the same questions, with one ingredient more in each line, and what each one added and cost.

From a model that knows nothing, through counting, pretraining, wording, examples, steps and retrieval, to instruction tuning
and learning from comparisons. What does not apply is skipped with its reason.
"""

from __future__ import annotations

from pathlib import Path

from stockpot import origin
from stockpot.stages.assemble import Progress, silent
from stockpot.stages.ledger_asking import asked_of
from stockpot.stages.ledger_book import Book, Ledger, LedgerConfig, Line
from stockpot.stages.ledger_lines import write_lines
from stockpot.stages.ledger_parts import find_parts, train_small

__all__ = ["Ledger", "LedgerConfig", "Line", "ledger"]


def ledger(
    model: str | Path,
    config: LedgerConfig | None = None,
    *,
    out: str | Path,
    progress: Progress | None = None,
) -> Ledger:
    """Ask the same questions of each line and leave ``ledger.json`` and ``ledger.svg`` in a folder.

    Args:
        model: a cook's folder (``runs/village``), or a base model; further models are named in ``config``.
        config: questions and what each line may use.
        out: the folder; what is there is replaced.
        progress: hears one event a line.

    Raises:
        ConfigError, DataError, GenerationError: if a model or the questions cannot be used.
    """
    config, report, out = config or LedgerConfig(), progress or silent, Path(out)
    named = {"tuned": config.tuned, "dpo": config.dpo, "rlhf": config.rlhf}
    parts = find_parts(model, named, config.text)
    asked = asked_of(
        config.questions,
        limit=config.limit,
        examples=config.examples,
        documents=config.documents,
    )
    if config.small:
        train_small(parts, out / "small", report)
    else:
        parts.missing["small"] = "not asked for"
    book = Ledger(str(model), asked.source, asked.chance, settings=config.model_dump(mode="json"))
    book.settings |= {"made": origin.now()}
    write_lines(Book(book, asked, report), parts, config)
    book.save(out)
    return book
