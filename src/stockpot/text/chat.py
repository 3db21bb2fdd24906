"""Conversations: messages → ids and a loss mask, through a chat template.

Decides that only the template writes special tokens. What people typed stays text however a template trims,
cuts or transforms it: spellings of special tokens inside contents are hidden behind characters that occur
nowhere else, and a second rendering, with every character of every content kept apart, proves that no special
token was put together from typed text. What a template may do lies in ``sandbox``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import TokenizerError
from stockpot.image import Image
from stockpot.text.sandbox import GENERATION, Renderer, TemplateRefusedError, Worker, compile_template

if TYPE_CHECKING:
    from stockpot.text.tokenizer import Tokenizer

__all__ = ["DEFAULT_TEMPLATE", "PICTURE", "ROLES", "ChatIds", "ChatTemplate", "Message"]

PICTURE = "\ufffc"
"""Stands for a picture in the text of a message that has pictures."""

ROLES = ("system", "user", "assistant", "tool", "developer")

_DEFAULT_SOURCE = """\
{{- '<|bos|>' -}}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|assistant|>' -}}
    {%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}
  {%- elif message.role in ('system', 'user') -%}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}
  {%- else -%}
    {{- raise_exception('This template knows the roles system, user and assistant.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""


@dataclass(frozen=True, init=False)
class Message:
    """One turn of a conversation.

    Args:
        role: who says it.
        content: text, or texts and pictures in their order.

    Attributes:
        content: the text; each picture in it is the character U+FFFC.
        pictures: the pictures in it, in their order.

    Raises:
        TokenizerError: if ``role`` is none of :data:`ROLES`, or ``content`` is neither.
    """

    role: str
    content: str
    pictures: tuple[Image, ...] = ()

    def __init__(self, role: str, content: str | Sequence[str | Image]) -> None:
        if role not in ROLES:
            raise TokenizerError(f"A message has the role {role!r}.", f"Roles are {', '.join(ROLES)}.")
        pictures: tuple[Image, ...] = ()
        if (
            content
            and isinstance(content, list | tuple)
            and all(isinstance(part, str | Image) for part in content)
        ):
            pictures = tuple(part for part in content if isinstance(part, Image))
            texts = (part.replace(PICTURE, "") if isinstance(part, str) else PICTURE for part in content)
            content = "".join(texts)
        if not isinstance(content, str):
            raise TokenizerError(f"The content of a message is {type(content).__name__}, not text.")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "pictures", pictures)


@dataclass(frozen=True)
class ChatIds:
    """An encoded conversation.

    Attributes:
        ids: ``(seq,)`` int32.
        loss_mask: ``(seq,)`` bool, True for what the assistant wrote, the token that ends its turn included.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, of the form Hugging Face models carry.

    Attributes:
        source: the template.
        tokens: variables it may use for special tokens, such as ``bos_token``.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return a tokenizer's own template, or the default one if it has none but has its tokens."""
        tokens = {f"{role}_token": token for role, token in tokenizer.roles.items()}
        if tokenizer.chat_template is not None:
            return cls(tokenizer.chat_template, tokens)
        needed = ("<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
        return DEFAULT_TEMPLATE if all(token in tokenizer.special_ids for token in needed) else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the conversation as one text, for people: special tokens and typed text look alike.

        Raises:
            TokenizerError: if the template is wrong or does what is not allowed.
        """
        return self._run([(messages, add_generation_prompt)], ("", ""))[0]

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = False,
        masked: bool = True,
        look: Callable[[Image], Sequence[int]] | None = None,
    ) -> ChatIds:
        """Return ids and loss mask.

        A picture in a message becomes the ids that ``look`` gives for it.

        Assistant text is what stands in the template's ``{% generation %}`` blocks. A template without them
        is rendered up to each assistant message with and without it, and the difference is the assistant's.

        Text is cut where assistant text begins, so that training sees the ids that generation continues. With
        ``masked=False`` nothing is told apart and nothing is cut: a prompt, of which nothing is learned. Some
        templates (Qwen 3, Mistral) rewrite earlier turns, so that only this works for long conversations.

        Raises:
            TokenizerError: if the template is wrong, or would let typed text become a special token, or a picture is
                given and nothing to look at it with.
        """
        if look is None and any(message.pictures for message in messages):
            raise TokenizerError("A message has a picture, which is not read here.", "Leave it out.")
        hidden = _Hidden(messages, self.source, list(tokenizer.special_ids))
        cases = [(hidden.messages, add_generation_prompt), (hidden.apart, add_generation_prompt)]
        is_marked = not masked or _HAS_GENERATION.search(self.source) is not None
        if not is_marked:
            for number in _assistant_turns(messages):
                cases += [(hidden.messages[:number], True), (hidden.messages[: number + 1], False)]
        whole, apart, *prefixes = self._run(cases, hidden.marks)
        if hidden.specials(whole) != hidden.specials(apart):
            raise TokenizerError(
                "The chat template lets typed text become a special token.",
                "Repair the template, or use the default one.",
            )
        if not is_marked:
            whole = _mark(whole, prefixes, hidden.marks)
        elif not masked:
            whole = whole.replace(hidden.marks[0], "").replace(hidden.marks[1], "")
        seen = {} if look is None else {mark: look(one) for mark, one in hidden.pictures.items()}
        return _to_ids(hidden, whole, tokenizer, seen)

    def _run(self, cases: Sequence[tuple[Sequence[Message], bool]], marks: tuple[str, str]) -> list[str]:
        """Render messages, each with or without the prompt for an answer."""
        variables: list[dict[str, Any]] = [
            {
                **self.tokens,
                "tools": None,
                "documents": None,
                "messages": [{"role": message.role, "content": message.content} for message in messages],
                "add_generation_prompt": prompt,
                GENERATION: marks,
            }
            for messages, prompt in cases
        ]
        try:
            return _renderer(self.source)(variables)
        except TemplateRefusedError as error:
            raise TokenizerError(
                f"The chat template cannot be used: {error}.", "Use another template."
            ) from None


def _assistant_turns(messages: Sequence[Message]) -> list[int]:
    return [number for number, message in enumerate(messages) if message.role == "assistant"]


def _mark(whole: str, prefixes: Sequence[str], marks: tuple[str, str]) -> str:
    """Put marks around assistant text, given the rendering up to before and after each assistant message."""
    parts, done = [], 0
    for number, prefix in enumerate(prefixes):
        if not whole.startswith(prefix) or len(prefix) < done:
            raise TokenizerError(
                "The chat template rewrites earlier turns: assistant text cannot be told apart.",
                "Put {% generation %} … {% endgeneration %} around assistant text in the template.",
            )
        parts += [whole[done : len(prefix)], marks[number % 2]]
        done = len(prefix)
    return "".join([*parts, whole[done:]])


_HAS_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@lru_cache(maxsize=32)
def _renderer(source: str) -> Renderer:
    """Our own template runs here; a stranger's in a child process that can be killed."""
    return compile_template(source) if source == _DEFAULT_SOURCE else Worker(source).render


class _Hidden:
    """Messages with special spellings replaced by private characters, and how to read a rendering."""

    def __init__(self, messages: Sequence[Message], source: str, special: Sequence[str]) -> None:
        unused = _unused_characters(
            source + "".join(message.content for message in messages) + "".join(special)
        )
        self.marks = (next(unused), next(unused))
        wall = next(unused)
        ordered = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self._private: dict[str, str] = {}
        self.pictures: dict[str, Image] = {}
        plain = [(m.role, self._mark_pictures(m, unused)) for m in messages]
        self.messages = [Message(role, self._special.sub(self._hide(unused), text)) for role, text in plain]
        self.apart = [Message(m.role, wall + "".join(c + wall for c in m.content)) for m in self.messages]
        self._shown = {ord(character): spelling for spelling, character in self._private.items()}
        pieces = "|".join(map(re.escape, [*self.marks, *self.pictures, *ordered]))
        self._pieces = re.compile(f"({pieces})")

    def _mark_pictures(self, message: Message, unused: Iterator[str]) -> str:
        """Put a private character in the place of each picture."""
        text = message.content
        for picture in message.pictures:
            mark = next(unused)
            self.pictures[mark] = picture
            text = text.replace(PICTURE, mark, 1)
        return text

    def _hide(self, unused: Iterator[str]) -> Any:
        def replace(found: re.Match[str]) -> str:
            spelling = found[0]
            if spelling not in self._private:
                self._private[spelling] = next(unused)
            return self._private[spelling]

        return replace

    def specials(self, rendering: str) -> list[str]:
        """Return the special tokens of a rendering, in order."""
        plain = rendering.replace(self.marks[0], "").replace(self.marks[1], "")
        return self._special.findall(plain)

    def split(self, rendering: str) -> list[str]:
        """Return ordinary texts (as typed) at even places, special spellings and marks at odd ones."""
        parts = self._pieces.split(rendering)
        return [part if number % 2 else part.translate(self._shown) for number, part in enumerate(parts)]


def _unused_characters(text: str) -> Iterator[str]:
    """Yield private-use characters that ``text`` does not hold; there are 137,468 in all."""
    used = set(text)
    for start, end in ((0xE000, 0xF900), (0xF0000, 0xFFFFE), (0x100000, 0x10FFFE)):
        for number in range(start, end):
            if chr(number) not in used:
                yield chr(number)
    raise TokenizerError("The conversation uses every private-use character there is.", "Clean it first.")


def _to_ids(
    hidden: _Hidden, rendering: str, tokenizer: Tokenizer, pictures: Mapping[str, Sequence[int]]
) -> ChatIds:
    ids: list[int] = []
    mask: list[bool] = []
    inside = False
    for number, piece in enumerate(hidden.split(rendering)):
        if number % 2 == 0:
            new = tokenizer.encode(piece) if piece else []
        elif piece in hidden.marks:
            inside, new = piece == hidden.marks[0], []
        elif piece in pictures:
            new = list(pictures[piece])
        else:
            new = [tokenizer.special_ids[piece]]
        ids += new
        mask += [inside] * len(new)
    return ChatIds(np.array(ids, np.int32), np.array(mask, np.bool_))


DEFAULT_TEMPLATE = ChatTemplate(_DEFAULT_SOURCE)
