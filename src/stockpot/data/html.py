"""The readable text of a web page.

Takes tags, scripts, styles and comments away and keeps words and paragraphs. It is no browser: it runs
nothing, fetches nothing, and takes time in proportion to the page whatever the page holds.
"""

from __future__ import annotations

import html
import re

__all__ = ["page_text"]

_HIDDEN = {  # what ends each; the head itself is not among them, as its end may be left out
    name: re.compile(rf"</{name}\b", re.IGNORECASE | re.ASCII)
    for name in ("script", "style", "noscript", "template", "svg", "title")
}
_BLOCK_NAMES = (
    "address article aside blockquote br dd div dl dt fieldset figcaption figure footer form h1 "
    "h2 h3 h4 h5 h6 header hr li main nav ol p pre section table td th tr ul"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_NAME = re.compile(r"/?([a-zA-Z][a-zA-Z0-9]*)")


def page_text(page: str) -> str:
    """Give the text of an HTML page: one line a paragraph, heading, list item or table cell.

    >>> page_text("<h1>Soup</h1><p>Salt &amp;\\n pepper.<script>x()</script></p>")
    'Soup\\nSalt & pepper.'
    """
    lines = (" ".join(html.unescape(line).split()) for line in _plain(page).split("\n"))
    return "\n".join(line for line in lines if line)


def _plain(page: str) -> str:
    """Drop everything that is not text; line ends are kept only where a block begins or ends."""
    parts: list[str] = []
    at = 0
    while (tag := page.find("<", at)) >= 0:
        parts.append(page[at:tag].replace("\n", " "))
        name = _NAME.match(page, tag + 1)
        if page.startswith("<!--", tag):
            closing, end = "-->", tag + 4
        elif name or page[tag + 1 : tag + 2] in ("!", "?", "/"):
            closing, end = ">", tag + 1
        else:  # a plain "less than"
            parts.append("<")
            at = tag + 1
            continue
        end = page.find(closing, end)
        if end < 0:  # never closed: nothing after it is text
            return "".join(parts)
        end += len(closing)
        word = name[1].lower() if name else ""
        if word in _HIDDEN and page[tag + 1] != "/" and page[end - 2] != "/":
            ending = _HIDDEN[word].search(page, end)
            if ending is None:
                return "".join(parts)
            end = ending.start()
        parts.append("\n" if word in _BLOCKS else "")
        at = end
    parts.append(page[at:].replace("\n", " "))
    return "".join(parts)
