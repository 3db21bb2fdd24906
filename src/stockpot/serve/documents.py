"""Documents that people drop into the chat: kept in a folder of their own under generated names, indexed, cited, forgotten.

What a file is, its content says; its name is kept as a word to show and never becomes part of a path. A document is read in a
child process where it is a PDF or Word file (`prompt.papers`). Passages go to whoever asks through `service.index`.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
import uuid
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import APIRouter, Request

from stockpot.data.files import FORMS
from stockpot.data.reading import shown
from stockpot.durable import write_atomically
from stockpot.errors import StockpotError
from stockpot.prompt.index import Index, IndexConfig, index
from stockpot.serve.protocol import Refusal
from stockpot.serve.service import Service

__all__ = ["Documents", "kind_of", "routes"]

MOST_DOCUMENTS = 200
NAMES = "names.json"
TEXTS = tuple(ending for ending, form in FORMS.items() if form != "parquet")


@dataclass
class Documents:
    """The documents of one server.

    Args:
        service: gets the index.
        folder: where files and index are kept; made when the first document comes.
        encoder: the model that makes vectors.
    """

    service: Service
    folder: Path
    encoder: str

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._own: Index | None = None
        self.is_open = self.service.index is None  # an index that was named at the start is not added to

    @property
    def names(self) -> dict[str, str]:
        """What people called the documents: generated name → theirs."""
        path = self.folder / NAMES
        if not path.is_file():
            return {}
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def open(self) -> None:
        """Serve what was uploaded before, if anything was."""
        if self.is_open and self.names:
            self.service.index = self._own = Index.open(self.folder / "index")

    def add(self, content: bytes, name: str) -> dict[str, Any]:
        """Keep and index a document.

        Raises:
            Refusal: if it is of no kind that is read, or holds no text, or there are too many.
        """
        if not self.is_open:
            raise Refusal(400, "This server answers from its own documents.", code="documents_are_fixed")
        ending = kind_of(content, name)
        with self._lock:
            names = self.names
            if len(names) >= MOST_DOCUMENTS:
                raise Refusal(
                    400,
                    f"There are {MOST_DOCUMENTS} documents already. Remove some.",
                    code="too_many_documents",
                )
            (self.folder / "files").mkdir(parents=True, exist_ok=True)
            stored = uuid.uuid4().hex + ending
            path = self.folder / "files" / stored
            try:
                write_atomically(path, content)
                self._update()
                assert self._own is not None
                passages = self._own.files.get(str(path.resolve()), {}).get("passages", 0)
                if not passages:
                    raise Refusal(400, "There is no text in this document.", code="empty_document")
                told = json.dumps(names | {stored: shown(name, 200)}, ensure_ascii=False)
                write_atomically(self.folder / NAMES, told)
            except BaseException as error:
                path.unlink(missing_ok=True)
                self._follow(names)
                if isinstance(error, StockpotError) and not isinstance(error, Refusal):
                    raise Refusal(
                        400, str(error).replace(str(path), "The document"), code="unreadable"
                    ) from None
                raise
        return {"id": stored, "name": shown(name, 200), "passages": passages}

    def remove(self, id: str) -> None:
        """Forget a document: its file, its passages, its name.

        Raises:
            Refusal: 404, if there is none of that id.
        """
        with self._lock:
            names = self.names
            if id not in names:
                raise Refusal(404, "There is no such document.", code="not_found")
            (self.folder / "files" / id).unlink(missing_ok=True)
            del names[id]
            write_atomically(self.folder / NAMES, json.dumps(names, ensure_ascii=False))
            self._follow(names)

    def told(self) -> list[dict[str, Any]]:
        """List the documents."""
        passages = (
            {Path(path).name: one["passages"] for path, one in self._own.files.items()} if self._own else {}
        )
        return [{"id": id, "name": name, "passages": passages.get(id, 0)} for id, name in self.names.items()]

    def _follow(self, names: Collection[str]) -> None:
        """Forget the passages of documents that are gone; with the last one the whole index goes."""
        if names:
            self._update()
        else:
            self.service.index = None
            shutil.rmtree(self.folder / "index", ignore_errors=True)

    def _update(self) -> None:
        """Bring the index up to date, and give the service one of its own: the two are used in different threads."""
        config = IndexConfig(encoder=self.encoder)
        bundle = None if self._own is None else self._own.encoder
        self._own, _ = index(self.folder / "files", self.folder / "index", config, encoder=bundle)
        self.service.index = Index.open(self.folder / "index", encoder=self._own.encoder)


def kind_of(content: bytes, name: str) -> str:
    """Tell the ending under which a document is kept from its content; of texts the name may say which kind.

    Raises:
        Refusal: if it is nothing that is read.
    """
    if content.startswith(b"%PDF-"):
        return ".pdf"
    if content.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if "word/document.xml" in archive.namelist():
                    return ".docx"
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
            pass
        raise Refusal(400, "Archives are not taken; give the document itself.", code="unknown_kind")
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or not text.strip():
        known = "PDF, Word, Markdown, HTML, CSV, JSON lines and plain text (UTF-8)"
        raise Refusal(
            400, f"This file is of no kind that is read, or empty. Known: {known}.", code="unknown_kind"
        )
    if text.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        return ".html"
    ending = PurePosixPath(name).suffix.lower()
    return ending if ending in TEXTS else ".txt"


def routes(documents: Documents) -> APIRouter:
    """Make the routes of documents."""
    router = APIRouter(prefix="/v1/documents")

    @router.get("")
    def told() -> dict[str, Any]:
        """List the documents."""
        return {
            "documents": documents.told(),
            "is_open": documents.is_open,
            "is_fixed": not documents.is_open,
        }

    @router.post("")
    async def add(request: Request, name: str = "document") -> dict[str, Any]:
        """Take a document: its bytes as they are."""
        content = await request.body()
        return await asyncio.to_thread(documents.add, content, name)

    @router.delete("/{id}")
    def remove(id: str) -> dict[str, Any]:
        """Forget a document."""
        documents.remove(id)
        return {"documents": documents.told()}

    return router
