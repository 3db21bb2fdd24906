"""Bundle: everything a model needs to be talked to, in one object.

A bundle is a model, its tokenizer, its chat template and its generation defaults. ``encode`` is the one place
where text, messages or pictures become the ids that a model reads. It opens no file but the pictures it is given
(``weights`` does), and runs no model but a model's eyes (``generate`` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stockpot.errors import GenerationError
from stockpot.image import Image
from stockpot.text.chat import ChatTemplate, Message
from stockpot.text.framing import Frame
from stockpot.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from stockpot.model.transformer import Transformer

__all__ = ["Bundle", "Embedding"]

END_OF_TURN = "<|end|>"


@dataclass(frozen=True)
class Embedding:
    """How a sentence encoder was trained to make one vector of a text.

    Attributes:
        pool: the mean of all tokens' hidden states, or the first (``"cls"``) or the ``"last"`` token's.
        normalise: whether vectors have length 1.
        most_tokens: longer texts are cut, special tokens included; None: to the model's context.
        prompt: what stands before every text.
    """

    pool: Literal["mean", "cls", "last"] = "mean"
    normalise: bool = False
    most_tokens: int | None = None
    prompt: str = ""


@dataclass
class Bundle:
    """A model with the text side that belongs to it.

    Attributes:
        model: the network; its device and dtype are those of its weights.
        tokenizer: text ↔ ids.
        template: how messages become ids; None for models that hold no conversations.
        generation: defaults for :class:`stockpot.Sampling` that came with the model (``temperature``,
            ``top_p`` …).
        source: the folder the bundle was read from, if any.
        family: the ``model_type`` it was read as; it is written as that again while it still can be.
        embedding: how a sentence encoder makes vectors; None for other models.
        soft: ids of a soft prompt, which stand before everything that is encoded.
    """

    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    family: str | None = None
    embedding: Embedding | None = None
    soft: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Say what this is in one line; the fields show every layer and the whole template."""
        config = self.model.config
        facts = [
            f"{self.family or 'stockpot'} {config.shape.replace('_', '-')}",
            f"{config.parameters():,} parameters",
            f"{config.vocab_size:,} ids",
            f"context {config.context:,}",
            "with a chat template" if self.template else "without a chat template",
            f"from {self.source}" if self.source else "",
        ]
        return f"Bundle({', '.join(filter(None, facts))})"

    def encode(
        self, prompt: str | Sequence[Message] | Sequence[str | Image], *, most: int | None = None
    ) -> list[int]:
        """Turn a prompt into the ids the model reads.

        A text is encoded as ordinary text: spellings of special tokens in it stay text. Around it stands what
        :attr:`frame` says. Messages go through the chat template, up to the point where the assistant's next
        answer begins. A picture, in a message or among texts, becomes ids behind the vocabulary.

        Args:
            prompt: a text, a conversation, or texts and pictures in their order.
            most: cut a text so that it has no more ids than this, its frame included.

        Raises:
            GenerationError: if messages are given to a model without a chat template, or a picture to one without eyes.
            DataError: if a picture cannot be read.
        """
        if isinstance(prompt, str):
            first, last = self.frame
            ids = self.tokenizer.encode(prompt)
            if most is not None:
                ids = ids[: max(most - len(first) - len(last) - len(self.soft), 0)]
            return [*self.soft, *first, *ids, *last]
        parts = [part for part in prompt if not isinstance(part, Message)]
        if parts and len(parts) == len(prompt):
            first, last = self.frame
            shown = [self.tokenizer.encode(p) if isinstance(p, str) else self._look(p) for p in parts]
            return self.held([*self.soft, *first, *(id for part in shown for id in part), *last])
        messages = [part for part in prompt if isinstance(part, Message)]
        if parts:
            raise GenerationError(
                "Messages do not stand among texts and pictures.", "Put them into one message."
            )
        if self.template is None:
            raise GenerationError(
                "Messages were given, but this model has no chat template.",
                "Give a plain text, or use a model that was trained on conversations.",
            )
        seen: list[Sequence[int]] = []

        def look(image: Image) -> Sequence[int]:
            seen.append(self._look(image))
            return seen[-1]

        chat = self.template.encode(
            messages, self.tokenizer, add_generation_prompt=True, masked=False, look=look
        )
        pictures = {id for ids in seen for id in ids}
        words = [id for id in map(int, chat.ids) if id not in pictures]
        if max(words, default=0) >= self.model.config.vocab_size:
            token = self.tokenizer.id_to_token(max(words))
            raise GenerationError(
                f"The chat template writes {token!r}, which the model has no id for.", "Use another template."
            )
        return self.held([*self.soft, *(int(id) for id in chat.ids)])

    def held(self, ids: list[int]) -> list[int]:
        """Give ids as a list that keeps the pictures among them as long as it lives.

        Raises:
            GenerationError: if a picture is forgotten already.
        """
        from stockpot.model.sight import sight_of

        sight = sight_of(self.model)
        return ids if sight is None else sight.hold(ids)

    def _look(self, image: Image) -> Sequence[int]:
        """Give the ids that mean a picture."""
        from stockpot.model.sight import sight_of

        sight = sight_of(self.model)
        if sight is None:
            raise GenerationError(
                "A picture was given, but this model reads text only.",
                "Give it eyes: stockpot align-image MODEL --data CAPTIONS.",
            )
        return sight.look(image.key, lambda: _tensor(image, sight.reader.config.image.image_size))

    @property
    def id_count(self) -> int:
        """How many ids mean something: the vocabulary, and behind it a soft prompt or the pictures seen so far."""
        from stockpot.model.sight import sight_of

        sight = sight_of(self.model)
        return len(self.soft) + (self.model.config.vocab_size if sight is None else sight.known_ids)

    @property
    def frame(self) -> Frame:
        """The ids before and behind a text: what its tokenizer.json says, else what the model is for.

        A decoder's text then starts with the begin-of-sequence id if the tokenizer puts one there; an encoder's
        stands between the ids for cls and sep, and an encoder-decoder's source ends with the end-of-sequence id,
        if the tokenizer has them.
        """
        text = self.tokenizer
        if text.frame is not None:
            return text.frame
        first, last = {
            "decoder": (text.bos_id if text.adds_bos else None, None),
            "encoder": (text.cls_id, text.sep_id),
            "encoder_decoder": (None, text.eos_id),
        }[self.model.config.shape]
        return () if first is None else (first,), () if last is None else (last,)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: end of document, end of turn, and those the generation defaults name.

        What the model has no id for is none of them.
        """
        named = self.generation.get("eos_token_id")
        ids = {self.tokenizer.eos_id, self.tokenizer.token_to_id(END_OF_TURN)}
        ids.update(named if isinstance(named, list | tuple) else [named])
        return frozenset(id for id in ids if isinstance(id, int) and 0 <= id < self.model.config.vocab_size)

    @property
    def start_id(self) -> int:
        """The id that the decoder of an encoder-decoder reads first.

        Raises:
            GenerationError: if neither the model nor the tokenizer names one.
        """
        named = self.generation.get("decoder_start_token_id")
        for id in (named, self.tokenizer.bos_id, self.tokenizer.pad_id):
            if isinstance(id, int):
                return id
        raise GenerationError(
            "Nothing says which id the decoder begins with.",
            "Add decoder_start_token_id to generation_config.json, or a bos token to the tokenizer.",
        )

    @property
    def context(self) -> int:
        """Maximum number of ids the model was made for."""
        return self.model.config.context


def _tensor(image: Image, size: int) -> Tensor:
    import torch

    return torch.from_numpy(image.square(size).copy())
