"""Text leaves when it is certain, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.generate.release import TextStream


def from_bytes(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(data, stop=()):
    stream = TextStream(from_bytes, stop)
    out = []
    for byte in data:
        out.append(stream.push(byte))
        if stream.is_stopped:
            return out, True
    out.append(stream.finish())
    return out, stream.is_stopped


def test_a_character_leaves_whole():
    out, _ = pieces("a😀é".encode())
    assert out == ["a", "", "", "", "😀", "", "é", ""]


def test_half_a_character_at_the_end_is_shown_as_such():
    assert "".join(pieces("a😀".encode()[:-1])[0]) == "a\ufffd"


def test_the_beginning_of_a_stop_text_is_held_back():
    stream = TextStream(from_bytes, ("\nUser:",))
    assert "".join(stream.push(byte) for byte in b"Hi\nUse") == "Hi"
    assert "".join(stream.push(byte) for byte in b"less.") == "\nUseless."


def test_a_stop_text_across_pieces_ends_the_text_before_it():
    out, stopped = pieces(b"Hi\nUser: more", ("\nUser:",))
    assert stopped and "".join(out) == "Hi"


def test_the_earliest_stop_text_wins():
    assert "".join(pieces(b"one two three", ("three", "two"))[0]) == "one "


def test_a_stop_text_inside_one_token_is_found():
    stream = TextStream(lambda ids: "".join("a###b" for _ in ids), ("##",))
    assert stream.push(0) == "a"
    assert stream.is_stopped and stream.finish() == ""


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_all_pieces_together_are_the_text(text):
    assert (
        "".join(pieces(text.encode("utf-8", errors="replace"))[0])
        == text.encode("utf-8", errors="replace").decode()
    )


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_come_out_as_the_decoder_writes_them(data):
    assert "".join(pieces(data)[0]) == from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="ab#", max_size=40),
    st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_texts_are_cut_as_by_looking_at_the_whole(text, stop):
    # Text is looked at as it grows: the first stop text to be complete ends it.
    ends = [text.find(one) + len(one) for one in stop if one in text]
    out, stopped = pieces(text.encode(), tuple(stop))
    assert stopped == bool(ends)
    seen = text[: min(ends)] if ends else text
    cuts = [seen.find(one) for one in stop if one in seen]
    assert "".join(out) == seen[: min(cuts, default=None)]


def test_decoders_that_drop_a_leading_space_keep_the_others():
    words = {1: "▁one", 2: "▁two", 3: "▁three"}

    def decode(ids):
        return "".join(words[id] for id in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(decode)
    assert [stream.push(id) for id in (1, 2, 3)] == ["one", " two", " three"]


@pytest.mark.parametrize("size", [10, 500])
def test_endless_nonsense_is_let_go(size):
    assert "".join(pieces(b"\xf0" * size)[0]) == from_bytes(b"\xf0" * size)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from(list("aé😀�".encode()))), max_size=40))
def test_known_pieces_change_nothing_but_the_work(data):
    def piece(id):
        text = from_bytes([id])
        return None if "\ufffd" in text else text

    plain, quick = TextStream(from_bytes, ("ab",)), TextStream(from_bytes, ("ab",), piece)
    for byte in data:
        assert plain.push(byte) == quick.push(byte)
        assert plain.is_stopped == quick.is_stopped
        if plain.is_stopped:
            return
    assert plain.finish() == quick.finish()
