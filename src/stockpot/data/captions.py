"""Pictures with texts: from records, from a folder of pairs, or from the village's scenes.

Decides which picture belongs to which text and lists what has no partner. No picture is opened here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stockpot import durable
from stockpot.data.reading import ReadConfig, shown
from stockpot.data.records import ImageRecord
from stockpot.data.sources import fingerprint_sources, read_records
from stockpot.errors import DataError
from stockpot.image import Image

__all__ = [
    "CAPTION_PROMPT",
    "Caption",
    "Captions",
    "fingerprint_captions",
    "question_prompt",
    "read_captions",
    "read_scenes",
]

CAPTION_PROMPT = "A picture of"
"""What stands between a picture and its caption, unless the record says otherwise."""

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
RECORDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz")
SCENES = re.compile(r"village:scenes(?P<val>/val)?(?::(?P<seed>\d+)(?::(?P<count>\d+))?)?")
SCENE_COUNT = 4_000
LISTED = 5  # names a message gives


@dataclass(frozen=True)
class Caption:
    """One text about one picture: what is given, and what should follow.

    Attributes:
        picture: index of the picture.
        prompt: stands between the picture and ``text``.
        text: is learned.
    """

    picture: int
    prompt: str
    text: str


@dataclass
class Captions:
    """Pictures and texts that belong to them.

    Attributes:
        pictures: each once, however many texts it has.
        texts: what is said of them.
        without_picture: texts whose picture is not there, by file and line or by file.
        without_text: pictures beside the texts that no text names.
    """

    pictures: list[Image] = field(default_factory=list)
    texts: list[Caption] = field(default_factory=list)
    without_picture: list[str] = field(default_factory=list)
    without_text: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """List, with counts, what has no partner."""
        found = [
            ("captions without a picture", self.without_picture),
            ("pictures without a caption", self.without_text),
        ]
        return [f"{len(names):,} {what} left out: {_some(names)}" for what, names in found if names]


def question_prompt(question: str) -> str:
    """Put a question about a picture as it is learned and asked."""
    return f"Question: {question} Answer:"


def read_scenes(source: str, most: int) -> tuple[str, int, int] | None:
    """Read ``village:scenes[/val][:SEED[:COUNT]]`` as side, seed (0) and count (``most``); None: it names something else.

    Raises:
        DataError: if it asks for no scene.
    """
    named = SCENES.fullmatch(source)
    if named is None:
        return None
    count = most if named["count"] is None else int(named["count"])
    if count < 1:
        raise DataError(f"{source} names 0 scenes.", "Ask for at least one, or leave the count out.")
    return "val" if named["val"] else "train", int(named["seed"] or 0), count


def read_captions(sources: Sequence[str | os.PathLike[str]], *, limit: int | None = None) -> Captions:
    """Read pictures with their texts.

    Args:
        sources: a file of records ``{"image", "text"[, "prompt"]}``, whose paths start at the file's folder; a folder with such
            files, or with pictures beside texts of the same name (``cat.png``, ``cat.txt``); or
            ``village:scenes[/val][:SEED[:COUNT]]``.
        limit: most pictures.

    Raises:
        DataError: if a source is missing, a record is wrong, or no text has a picture.
    """
    found = Captions()
    for source in sources:
        name = os.fspath(source)
        if scenes := read_scenes(name, SCENE_COUNT):
            side, seed, count = scenes
            count = count if limit is None else min(count, max(0, limit - len(found.pictures)))
            _add_scenes(found, side, seed, count)
        elif Path(name).is_dir():
            _add_folder(found, Path(name), limit)
        else:
            _add_records(found, [Path(name)], Path(name).parent, limit)
    if not found.texts:
        raise DataError(
            f"No caption in {', '.join(map(str, sources))[:200]} has a picture.",
            'Give records {"image": PATH, "text": CAPTION}; paths start at the file\'s folder.',
        )
    return found


def fingerprint_captions(sources: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Describe sources for a manifest: what `fingerprint_sources` gives, of scenes and folders as `read_captions` reads them.

    A folder of pairs is one entry: the sum over the names and sums of its pictures and texts.
    """
    found: list[dict[str, Any]] = []
    for source in (os.fspath(one) for one in sources):
        if SCENES.fullmatch(source):
            from stockpot.village import VILLAGE_VERSION

            found.append({"path": source, "version": VILLAGE_VERSION})
        elif not Path(source).is_dir():
            found += fingerprint_sources(source)
        elif records := _files_in(Path(source), RECORDS):
            found += map(durable.fingerprint, records)
        else:
            files = [durable.fingerprint(one) for one in _files_in(Path(source), (*PICTURES, ".txt"))]
            names = [(Path(one["path"]).name, one["sha256"]) for one in files]
            digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
            found.append({"path": source, "bytes": sum(one["bytes"] for one in files), "sha256": digest})
    return found


def _files_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(endings))


def _add_scenes(found: Captions, side: str, seed: int, count: int) -> None:
    """Add scenes, each with its caption and one question."""
    from stockpot.village import Village
    from stockpot.village.scenes import paint, scene_questions

    for number, scene in enumerate(Village(seed).scenes(side, count)):
        index = len(found.pictures)
        found.pictures.append(Image(paint(scene)))
        found.texts.append(Caption(index, CAPTION_PROMPT, scene.facts.caption))
        asked = scene_questions(scene)
        question, answer, _ = asked[number % len(asked)]
        found.texts.append(Caption(index, question_prompt(question), answer))


def _add_folder(found: Captions, folder: Path, limit: int | None) -> None:
    if records := _files_in(folder, RECORDS):
        _add_records(found, records, folder, limit)
        return
    pictures = {path.stem: path for path in _files_in(folder, PICTURES)}
    texts = {path.stem: path for path in _files_in(folder, (".txt",))}
    found.without_picture += [str(texts[stem]) for stem in sorted(texts.keys() - pictures.keys())]
    found.without_text += [str(pictures[stem]) for stem in sorted(pictures.keys() - texts.keys())]
    for stem in sorted(pictures.keys() & texts.keys()):
        if limit is not None and len(found.pictures) >= limit:
            return
        try:
            said = texts[stem].read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{texts[stem]} cannot be read as a caption ({error}).", "Give UTF-8 text."
            ) from None
        if not said:
            found.without_text.append(str(pictures[stem]))
            continue
        found.pictures.append(Image(pictures[stem]))
        found.texts.append(Caption(len(found.pictures) - 1, CAPTION_PROMPT, said))


def _add_records(found: Captions, files: Sequence[Path], folder: Path, limit: int | None) -> None:
    known: dict[Path, int] = {}
    for record in read_records([str(path) for path in files], ReadConfig()):
        if not isinstance(record, ImageRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record has no picture.",
                'Give records {"image", "text"}.',
            )
        path = folder / record.image
        if path not in known:
            if not path.is_file():
                found.without_picture.append(record.where)
                continue
            if limit is not None and len(found.pictures) >= limit:
                continue
            known[path] = len(found.pictures)
            found.pictures.append(Image(path))
        found.texts.append(Caption(known[path], record.prompt or CAPTION_PROMPT, record.text))
    folders = {path.parent for path in known}
    beside = {one for place in folders for one in place.iterdir() if one.suffix.lower() in PICTURES}
    if limit is None:
        found.without_text += [str(path) for path in sorted(beside - known.keys())]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(_ending(name) for name in names[:LISTED]) + more


def _ending(name: str) -> str:
    """Show the end of a long path, which tells more than its beginning."""
    return shown(name if len(name) <= 80 else f"…{name[-79:]}", 80)
