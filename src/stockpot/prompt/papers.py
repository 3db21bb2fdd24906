"""Read PDF and Word files in a process of their own, which may take half a minute and 1.5 GiB.

The file is a stranger's: the libraries that read it run in a child that is killed when it passes a limit, sees nothing of
this process, and writes nothing. The child is this very file, run by path, so it must import only the standard library at
the top.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["TIMEOUT_S", "PaperError", "read_paper"]

TIMEOUT_S = 30.0
_MEMORY_BYTES = 1536 << 20
_UNPACKED_BYTES = 512 << 20
_RATIO = 200
_FREE_BYTES = 64 << 20  # below this much, a ratio is no sign of a bomb


class PaperError(Exception):
    """A file cannot be read; the message is one line."""


def read_paper(path: Path, *, timeout_s: float = TIMEOUT_S) -> list[tuple[str, str]]:
    """Give the parts of a PDF or Word file: where each stands, and its text.

    Raises:
        PaperError: if it is damaged, encrypted, a bomb, too slow or too large, or the library that reads it is not here.
    """
    command = [sys.executable, "-I", str(Path(__file__).resolve()), str(path.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, env={})
    except subprocess.TimeoutExpired:
        raise PaperError(f"reading it takes more than {timeout_s:g} s") from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise PaperError("reading it took too much memory, or broke its reader") from None
    if "error" in found:
        raise PaperError(found["error"])
    return [(str(place), str(text)) for place, text in found["parts"]]


# --- in the child ---


def _pdf(path: Path) -> Iterator[tuple[str, str]]:
    from pypdf import PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise PaperError("it is encrypted")
    for number, page in enumerate(reader.pages, 1):
        yield f"page {number}", page.extract_text()


def _docx(path: Path) -> Iterator[tuple[str, str]]:
    from docx import Document

    with zipfile.ZipFile(path) as packed:
        whole = sum(one.file_size for one in packed.infolist())
    if whole > max(_FREE_BYTES, _RATIO * path.stat().st_size) or whole > _UNPACKED_BYTES:
        raise PaperError("it unpacks to far more than it should")
    document = Document(str(path))
    place, lines = "", list[str]()
    for paragraph in document.paragraphs:
        style = (paragraph.style.name or "") if paragraph.style is not None else ""
        if style.startswith(("Heading", "Title")) and paragraph.text.strip():
            if lines:
                yield place, "\n\n".join(lines)
            place, lines = paragraph.text.strip(), []
        elif paragraph.text.strip():
            lines.append(paragraph.text.strip())
    if lines:
        yield place, "\n\n".join(lines)
    for number, table in enumerate(document.tables, 1):
        rows = [" | ".join(cell.text.strip() for cell in row.cells) for row in table.rows]
        yield f"table {number}", "\n".join(rows)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic = file.read(1024)
    try:
        if b"%PDF-" in magic:
            return {"parts": list(_pdf(path))}
        if magic.startswith(b"PK"):
            return {"parts": list(_docx(path))}
        return {"error": "its content is neither a PDF nor a Word file"}
    except ImportError as error:
        return {"error": f"its reader is not installed ({error.name}); pip install 'stockpot[rag]'"}
    except PaperError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "reading it takes too much memory"}
    except Exception as error:  # noqa: BLE001 - a stranger's file may break its reader in any way
        return {"error": f"it is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})"}


def _main() -> None:
    import logging

    logging.disable()
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.write(json.dumps(_read(Path(sys.argv[1]))))


if __name__ == "__main__":
    _main()
