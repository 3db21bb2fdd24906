"""The samples in docs/village.md are what the code yields. Run this file to write them anew."""

from __future__ import annotations

import ast
import re
from itertools import islice
from pathlib import Path
from typing import Any

from stockpot.village import KINDS, VILLAGE_VERSION, Village
from stockpot.village.chats import CHAT_KINDS
from stockpot.village.documents import DOCUMENT_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "village.md"
SAMPLE = re.compile(r'(```text title="village\.(\w+)\((.*?)\)"\n)(.*?)(\n```)', re.DOTALL)


def render(record: dict[str, Any]) -> str:
    """Show a record as a reader likes it."""
    if "messages" in record:
        return "\n".join(f"{message['role']}: {message['content']}" for message in record["messages"])
    if "chosen" in record:
        return "\n".join(f"{key}: {record[key]}" for key in ("prompt", "chosen", "rejected", "margin"))
    if set(record) == {"text"}:
        return record["text"]
    lines = [record[key] for key in ("text", "question") if key in record]
    lines += [f"choices: {' · '.join(record['choices'])}", f"answer: {record['answer']}"]
    if "held_out" in record:
        lines.append(f"held out: {record['held_out']}")
    return "\n".join(lines)


def sample(what: str, arguments: str) -> str:
    """Yield one record by the call that stands above it, such as ``documents(kind='story', start=3)``."""
    call = ast.parse(f"f({arguments})", mode="eval").body
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    if what == "news":
        return render(Village().news()[0])
    start = 0 if what != "questions" else options.pop("start", 0)
    return render(next(islice(getattr(Village(), what)(**options), start, None)))


def refreshed(page: str) -> str:
    return SAMPLE.sub(lambda m: f"{m[1]}{sample(m[2], m[3])}{m[5]}", page)


def test_the_page_shows_what_the_code_yields():
    page = PAGE.read_text(encoding="utf-8")
    assert len(SAMPLE.findall(page)) >= 10
    assert refreshed(page) == page, "run python tests/village/test_village_docs.py"


def test_the_page_names_every_kind():
    page = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in (*DOCUMENT_KINDS, *CHAT_KINDS, *KINDS) if f"`{kind}`" not in page] == []
    assert f"version {VILLAGE_VERSION}" in page


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
