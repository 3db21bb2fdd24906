"""When generated text may leave: never half a character, never the beginning of a stop text.

``TextStream`` takes ids one by one and gives text back as soon as nothing that follows can change it. It
knows a tokenizer and stop texts; it does not know a model, and it decides nothing about ids that end an
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not (yet) a character
LONGEST_TAIL = 3  # bytes of an unfinished UTF-8 character
LONGEST_WINDOW = 64  # ids after which text that never becomes whole is let go


class TextStream:
    """Turn ids into text piece by piece.

    The text of all pieces together is the decoded text, up to the first stop text.

    Args:
        decode: ids → text.
        stop: texts that end the stream; none of them is released.
        piece: id → the text it adds wherever it stands between whole characters, or None; spares decoding.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        piece: Callable[[int], str | None] | None = None,
    ) -> None:
        self._decode, self._piece = decode, piece
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Decoding restarts at a border where the text was whole. One earlier stretch of ids stays in the
        # window, since decoders treat the first token of a text differently (they drop its leading space).
        self._start = 0
        self._read = 0
        self._given = 0
        self._held = ""
        self.is_stopped = False

    def push(self, id: int) -> str:
        """Take one more id; return the text that is now certain."""
        is_at_border = self._piece is not None and self._read == len(self._ids)
        self._ids.append(id)
        piece = self._piece(id) if is_at_border and self._piece is not None else None
        if piece is None:
            return self._filter(self._next_piece(final=False))
        self._start = self._read = len(self._ids)
        self._given = 0
        return self._filter(piece)

    def finish(self) -> str:
        """Return what was held back, since nothing follows any more."""
        if self.is_stopped:
            return ""
        released = self._filter(self._next_piece(final=True))
        held, self._held = self._held, ""
        return released + held

    def _next_piece(self, *, final: bool) -> str:
        window = self._decode(self._ids[self._start :])
        is_whole = not window.endswith(INCOMPLETE)
        if is_whole or final or len(self._ids) - self._read > LONGEST_WINDOW:
            piece = window[self._given :]
            self._start, self._read = self._read, len(self._ids)
            self._given = len(self._decode(self._ids[self._start :]))
            return piece
        certain = len(window)
        while certain and len(window) - certain < LONGEST_TAIL and window[certain - 1] == INCOMPLETE:
            certain -= 1
        piece = window[self._given : certain]
        self._given = max(self._given, certain)
        return piece

    def _filter(self, piece: str) -> str:
        """Cut at the first stop text, and hold back what could be the beginning of one."""
        if not self._stop:
            return piece
        text = self._held + piece
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        border = len(text) - keep
        self._held = text[border:]
        return text[:border]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` are the first ones of ``stop``.

    >>> _overlap("a line\\nUs", "\\nUser:")
    3
    """
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
