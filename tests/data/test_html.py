from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot.data.html import page_text

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p { color: red }</style></head>
<body><!-- a > b --><h1>Leek &amp; potato</h1>
<p class="x">Stir
   well.<br>Serve <b>hot</b>.</p><ul><li>one</li><li>two</li></ul>
<script>if (a < b) { alert("</p>") }</script><table><tr><td>3</td><td>spoons</td></tr></table>
2 < 3 and 5 > 4</body></html>"""


def test_words_and_paragraphs_stay():
    lines = page_text(PAGE).split("\n")
    assert lines == [
        "Leek & potato",
        "Stir well.",
        "Serve hot.",
        "one",
        "two",
        "3",
        "spoons",
        "2 < 3 and 5 > 4",
    ]


@pytest.mark.parametrize(
    "page", ["", "<", "<p", "<!--", "<script>x", "text <b", "</", "<!-- -- >", "&#0;&#xFFFFFFFF;"]
)
def test_torn_pages_end_quietly(page):
    assert "<p" not in page_text(page)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<!-- never closed <p>x", ""),
        ("<head><title>T</title><body><header>Menu</header><p>Soup", "Menu\nSoup"),  # </head> may be left out
        (
            "İ" * 9 + "<SCRIPT>x()</Script><p>Salt and pepper",
            "İ" * 9 + "\nSalt and pepper",
        ),  # longer in lower case
        ("<svg><title>T</title>x</svg>Soup", "Soup"),
    ],
)
def test_only_what_is_hidden_is_left_out(page, text):
    assert page_text(page) == text


@pytest.mark.parametrize("piece", ["<", "<a", "<!--", "<![CDATA[", "&", "<script>", "<p>", "</script", "<!"])
def test_hostile_pages_take_time_in_proportion(piece):
    start = time.process_time()
    page_text(piece * 300_000)
    assert time.process_time() - start < 5, "linear work takes a fraction of this; quadratic work takes hours"


@given(st.text(alphabet='<>!-/ab&;\n "scriptp', max_size=200))
def test_any_page_gives_text_without_empty_lines(page):
    text = page_text(page)
    assert "" not in text.split("\n") or text == ""
