"""From items to what the engine is asked: pairs of ids to be scored, prompts to go on from, and what does not fit.

A prompt and its completion are encoded together and then cut, as lm-evaluation-harness does, so that a tokenizer that joins
across the border is treated alike. An item that is longer than the context is never cut: it is left out and told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError, TokenizerError
from stockpot.generate.inputs import prompt_ids
from stockpot.judge.tasks import Item, Left, Scorer, Wording, word_item
from stockpot.text.chat import Message

__all__ = ["Asked", "ask_item", "check_head", "split_pair", "windows"]

Ids = tuple[int, ...]
WRITES = ("both", "write", "code")


@dataclass(frozen=True)
class Asked:
    """What is asked of the engine for one item.

    Attributes:
        pairs: ids of a prompt and of what is scored behind it.
        sizes: UTF-8 bytes of each completion.
        without: the same completions without the question, for PMI.
        prompt: what is gone on from; None where nothing is written.
        shown: the prompt as text, for reading.
    """

    item: Item
    pairs: tuple[tuple[Ids, Ids], ...] = ()
    sizes: tuple[int, ...] = ()
    without: tuple[tuple[Ids, Ids], ...] = ()
    prompt: Ids | None = None
    shown: str = ""

    @property
    def length(self) -> int:
        """Ids of the longest row."""
        rows = [len(a) + len(b) for a, b in (*self.pairs, *self.without)]
        return max([*rows, len(self.prompt or ())], default=0)


def check_head(bundle: Bundle, name: str) -> None:
    """Refuse a model that can neither score nor write, before any item is asked.

    Raises:
        GenerationError: saying what it lacks.
    """
    config = bundle.model.config
    if config.decoder is None:
        raise GenerationError(
            f"{name} is an encoder: it gives no probability to an answer and cannot write one.",
            "Judge a decoder or an encoder-decoder; encoders are for fill, embed and probe.",
        )
    if not config.predicts:
        raise GenerationError(
            f"{name} has no head for words: it makes vectors or ratings only.",
            "Judge a model that predicts tokens; reward models are judges of `stockpot contest`.",
        )


def ask_item(bundle: Bundle, item: Item, scorer: Scorer, wording: Wording) -> Asked | Left:
    """Turn an item into ids, or say why it cannot be asked."""
    try:
        asked = _encoded(bundle, item, scorer, wording)
    except TokenizerError as error:
        return Left(item.id, f"{item.id}: {error}")
    return _unfit(bundle, asked, scorer) or asked


def _encoded(bundle: Bundle, item: Item, scorer: Scorer, wording: Wording) -> Asked:
    lead = item.lead if item.prompt is not None or wording == "plain" else ""
    if wording == "chat":
        lead = ""
    put = word_item(item, wording)
    shown = put if isinstance(put, str) else put[0].content
    pairs: list[tuple[Ids, Ids]] = []
    sizes: list[int] = []
    if scorer.kind == "text":
        pairs = [(part.before, part.scored) for part in windows(bundle, shown)]
        sizes = [len(shown.encode("utf-8", "surrogatepass"))]
    elif (
        item.choices or item.answer
    ):  # where an answer is written, how likely the right one is stands beside it
        completions = item.choices or (item.answer,)
        contexts: Sequence[str | list[Message]] = [put] * len(completions)
        if item.contexts:
            contexts = item.contexts
        pairs = [
            split_pair(bundle, context, lead + text)
            for context, text in zip(contexts, completions, strict=True)
        ]
        counted = lead if scorer.kind == "both" else ""  # lm-eval counts a choice's own bytes only
        sizes = [len((counted + text).encode("utf-8", "surrogatepass")) for text in completions]
    without: tuple[tuple[Ids, Ids], ...] = ()
    if scorer.pmi and item.choices:
        without = tuple(split_pair(bundle, scorer.without, lead + text) for text in item.choices)
    prompt = tuple(prompt_ids(bundle, put)) if scorer.kind in WRITES else None
    return Asked(item, tuple(pairs), tuple(sizes), without, prompt, shown)


def _unfit(bundle: Bundle, asked: Asked, scorer: Scorer) -> Left | None:
    """Say why an item cannot be asked of this model, if so."""
    id, context = asked.item.id, bundle.context
    encoder = bundle.model.config.encoder
    if any(not before or not scored for before, scored in asked.pairs) or asked.prompt == ():
        return Left(id, f"{id}: its prompt or one of its answers is empty to this model")
    needed = max((len(a) + len(b) if encoder is None else len(b) for a, b in asked.pairs), default=0)
    if asked.prompt is not None:
        room = min(scorer.max_tokens, 8)  # an answer may be shorter than the longest allowed
        needed = max(needed, room + (len(asked.prompt) if encoder is None else 0))
    if encoder is not None:
        source = max([*(len(a) for a, _ in asked.pairs), len(asked.prompt or ())])
        if source > encoder.context:
            return Left(id, f"{id}: {source} tokens; this model reads {encoder.context}")
    if needed > context:
        return Left(id, f"{id}: question and answer take {needed} tokens; this model has room for {context}")
    return None


def split_pair(bundle: Bundle, prompt: str | Sequence[Message], completion: str) -> tuple[Ids, Ids]:
    """Encode a prompt and its completion together, and cut behind the prompt.

    Spaces at the prompt's end go to the completion, since tokenizers join them with the next word. An empty prompt becomes
    the token with which texts begin or end: something has to stand before the first token that is scored.
    """
    if not isinstance(prompt, str) or bundle.model.config.encoder is not None:
        return tuple(prompt_ids(bundle, prompt)), tuple(bundle.tokenizer.encode(completion))
    bare = prompt.rstrip()
    completion = prompt[len(bare) :] + completion if len(bare) < len(prompt) else completion
    if not bare:
        return (*bundle.soft, *_beginning(bundle)), tuple(bundle.tokenizer.encode(completion))
    before = bundle.encode(bare)
    whole = bundle.encode(bare + completion)
    return tuple(before), tuple(whole[len(before) :])


def _beginning(bundle: Bundle) -> Ids:
    text = bundle.tokenizer
    found = text.bos_id if text.bos_id is not None else text.eos_id
    return () if found is None else (found,)


@dataclass(frozen=True)
class Window:
    """A piece of a text: what stands before, and what is scored."""

    before: Ids
    scored: Ids


def windows(bundle: Bundle, text: str) -> list[Window]:
    """Cut a text so that every token is scored once, with as much before it as the context allows.

    With room for 4, the ids 0 to 7 become (begin → 0 1 2), (2 → 3 4 5), (4 5 → 6 7).
    """
    ids = tuple(bundle.tokenizer.encode(text))
    begin, context = _beginning(bundle), bundle.context
    if not ids:
        return []
    if not begin:  # nothing can stand before the first token, so it is not scored
        begin, ids = ids[:1], ids[1:]
    first = ids[: context - 1]
    found = [Window(begin, first)] if first else []
    at = len(first)
    while at < len(ids):
        scored = ids[at : at + context - 1]
        before = max(1, context - len(scored))
        found.append(Window(ids[at - before : at], scored))
        at += len(scored)
    return found
