"""What the page asks for beside OpenAI's API, put together: looking, comparing, training, documents, reports.

The file of votes is made when the first of them needs it, so that a server that only answers writes nothing.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter

from stockpot.data.records import asked_of
from stockpot.data.sources import read_records
from stockpot.serve import comparing, documents, looking, reports, training
from stockpot.serve.feedback import Feedback
from stockpot.serve.service import Service

__all__ = ["PAGE", "routes"]

PAGE = Path(__file__).with_name("page")
"""The folder of the page itself."""


def routes(
    service: Service,
    feedback: str | Path,
    refs: Mapping[str, str],
    *,
    prompts: str | None = None,
    encoder: str = "minilm",
) -> APIRouter:
    """Make all routes of the page.

    Args:
        service: the models.
        feedback: the file of votes; uploads and trained models lie beside it, in a folder of the same name.
        refs: model's name → what it was loaded from.
        prompts: a file of prompts to queue for comparing.
        encoder: the model that makes vectors of documents.

    Raises:
        ServeError: if the file holds something else.
        DataError: if the prompts cannot be read.
    """
    path = Path(feedback).absolute()
    store = _Lazy(path)
    if prompts is not None:
        for record in read_records(prompts):
            messages, _ = asked_of(record)
            store().add_prompt(
                [{"role": one.role, "content": one.content} for one in messages], Path(prompts).name
            )
    elif path.exists():
        store()  # what is wrong with it is told now
    else:
        _warn_unless_writable(path)
    folder = path.with_name(f"{path.stem}-files")
    trained = training.Training(service, store, refs, folder / "trained")
    papers = documents.Documents(service, folder / "documents", encoder)
    papers.open()
    router = APIRouter()
    router.include_router(looking.routes(service))
    router.include_router(comparing.routes(service, store))
    router.include_router(training.routes(trained))
    router.include_router(documents.routes(papers))
    router.include_router(reports.routes(service, trained.refs))
    return router


def _warn_unless_writable(path: Path) -> None:
    """Tell before the first vote is lost that the file it goes to cannot be made."""
    folder = next(one for one in path.parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        warnings.warn(
            f"{path} cannot be made, so votes cannot be kept: name another file with --feedback.",
            stacklevel=3,
        )


class _Lazy:
    """Opens the file of votes once, when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._opened = path, threading.Lock(), list[Feedback]()

    def __call__(self) -> Feedback:
        with self._lock:
            if not self._opened:
                self._opened.append(Feedback(self._path))
            return self._opened[0]
