"""What steers a picture: texts as rows of vectors, from an encoder, from one-hot words, or from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError
from stockpot.generate.inputs import pad, reading_only
from stockpot.judge.captions import words_of
from stockpot.weights.store import load

__all__ = ["Steering", "make_steering"]

WORDS, NOTHING = "words", "nothing"
MOST_TOKENS = 32  # of a text; the rest is not read
AT_ONCE = 64  # texts that an encoder reads together
KEPT_BYTES = 256 << 20  # of states, at most, so that texts that come again need not be read again
NO_WORD = "<none>"


@dataclass
class Steering:
    """Turns texts into states, and remembers the latest ones.

    Attributes:
        source: ``"words"``, ``"nothing"``, or where the encoder is.
        width: of a state.
        words: known words, where they are one-hot: their order is that of the numbers.
        bundle: the encoder, if there is one; it is frozen.
    """

    source: str
    width: int
    words: list[str] = field(default_factory=list)
    bundle: Bundle | None = None
    _known: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What steers, for people."""
        return {WORDS: "one-hot words", NOTHING: "nothing"}.get(self.source, self.source)

    @property
    def has_words(self) -> bool:
        """Whether a text changes anything."""
        return self.source != NOTHING

    def states(self, texts: Sequence[str], *, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Give states ``(texts, seq, width)`` and which are real ``(texts, seq)``.

        Args:
            texts: what is to be drawn; the empty text has states too.
            length: at least so many, padding included.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            made = self._read(some) if self.bundle is not None else map(self._spell, some)
            self._known |= {text: _evened(row) for text, row in zip(some, made, strict=True)}
        rows = [self._known[text] for text in texts]
        most = KEPT_BYTES // (4 * self.width * MOST_TOKENS)
        for text in list(self._known)[: max(0, len(self._known) - most)]:  # the oldest
            del self._known[text]
        longest = max(length or 0, *(len(row) for row in rows))
        states = torch.zeros(len(rows), longest, self.width)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for at, row in enumerate(rows):
            states[at, : len(row)], real[at, : len(row)] = row, True
        return states, real

    def _read(self, texts: Sequence[str]) -> list[Tensor]:
        """Read texts with the encoder: ``(seq, width)`` each; at least one state."""
        assert self.bundle is not None
        rows = [self.bundle.encode(text, most=MOST_TOKENS) or [0] for text in texts]
        with reading_only(self.bundle.model):
            ids, real = pad(rows, self.bundle.model.device)
            hidden: Tensor = self.bundle.model(ids, attention_mask=real, last=0).hidden.float().cpu()
        return [states[: len(row)].clone() for states, row in zip(hidden, rows, strict=True)]

    def _spell(self, text: str) -> Tensor:
        """Write a text as one-hot words and their places ``(seq, width)``; at least one state."""
        if self.source == NOTHING:
            return torch.zeros(1, 1)
        places = {word: at for at, word in enumerate(self.words)}
        found = list(words_of(text))[:MOST_TOKENS] or [NO_WORD]
        states = torch.zeros(len(found), self.width)
        for at, word in enumerate(found):
            states[at, places.get(word, 0)] = 1.0
            states[at, len(self.words) + at] = 1.0  # and where it stands
        return states


def _evened(states: Tensor) -> Tensor:
    """Bring each state to a mean square of 1, so that no kind of text is louder than another."""
    return states / states.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def make_steering(
    source: str, texts: Sequence[str], *, words: Sequence[str] = (), device: torch.device
) -> Steering:
    """Prepare what steers.

    Args:
        source: ``"words"``, ``"nothing"``, or a model with an encoder: a run, a folder, ``minilm``.
        texts: whose words are to be known, for ``"words"``.
        words: the known words, where they are known already.
        device: where the encoder goes.

    Raises:
        ConfigError: if the model cannot read a text as a whole.
    """
    if source == NOTHING:
        return Steering(source, 1)
    if source == WORDS:
        known = list(words) or [NO_WORD, *sorted({word for text in texts for word in words_of(text)})]
        return Steering(source, len(known) + MOST_TOKENS, known)
    bundle = load(source, device=device, dtype="float32")
    if bundle.model.config.shape == "encoder_decoder":
        raise ConfigError(f"{source} is an encoder-decoder.", "Name an encoder or a decoder.")
    return Steering(source, bundle.model.config.dim, bundle=bundle)
