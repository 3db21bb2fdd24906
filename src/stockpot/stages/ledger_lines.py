"""The lines of the ledger, one after another: how each ingredient is put in, and what it is asked.

Nothing is chosen on the questions: the wording is chosen on examples, the rest is fixed beforehand. An ingredient changes the
questions it is for (steps: those whose answers are numbers; passages: those that a passage fits) and leaves the other answers as
they were. Once put in, it stays, but for examples and wordings, which a tuned model does not need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np

from stockpot.bundle import Bundle
from stockpot.data.sources import read_texts
from stockpot.device import seed_everything
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.requests import check_head
from stockpot.judge.tasks import Item
from stockpot.model.transformer import Transformer
from stockpot.prompt.shelf import Shelf
from stockpot.prompt.steps import ENDINGS, TRIGGER, think
from stockpot.stages.ledger_asking import Said, answer, answer_by_counting, worth
from stockpot.stages.ledger_book import Book, LedgerConfig
from stockpot.stages.ledger_parts import Cost, Parts
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.ngram import NGram
from stockpot.weights.store import load

__all__ = ["training_ids", "write_lines"]

BARE = "{}"
WORDINGS = {
    "bare": BARE,
    "question and answer": "Question: {}\nAnswer:",
    "Q and A": "Q: {}\nA:",
    "answer": "{}\nAnswer:",
    "the answer is": "{}\nThe answer is",
}
WORKED_SHOWN = 3
LEAST_CHOSEN_ON = 5  # examples of a kind, for a wording of its own
FINAL = "The answer is"


def write_lines(book: Book, parts: Parts, config: LedgerConfig) -> None:
    """Write every line that applies, and why the others do not."""
    lines = _Lines(book, parts, config)
    lines.random()
    lines.ngram()
    lines.base()
    lines.wording()
    lines.shots()
    lines.steps()
    lines.retrieval()
    for role, name in (("tuned", "+ instruction tuning"), ("dpo", "+ DPO"), ("rlhf", "+ RLHF")):
        lines.tuned(role, name)


class _Lines:
    """What the lines share: the base model, the chosen wording, and what has been put in so far."""

    def __init__(self, book: Book, parts: Parts, config: LedgerConfig) -> None:
        self.book, self.parts, self.config, self.asked = book, parts, config, book.asked
        self.bundle = load(parts.base, device=config.device, dtype=config.dtype)
        check_head(self.bundle, parts.base)
        self.words = BARE  # of most questions
        self.words_of: dict[str, str] = {}  # kinds that another wording suits better
        self.words_read: str | None = None  # behind a passage
        self.shown: dict[str, list[Item]] = {}
        self.uses_steps = False
        self.passages: dict[str, str] = {}

    def _put(
        self, bundle: Bundle, items: Sequence[Item], prompts: Mapping[str, str], **how: bool
    ) -> dict[str, Said]:
        tokens = self.config.steps_tokens if how.get("steps") else self.config.max_tokens
        chat, bare = how.get("chat", False), how.get("bare", False)
        return answer(bundle, items, prompts, max_tokens=tokens, chat=chat, bare=bare)

    def _line(
        self,
        name: str,
        ask: Callable[[], dict[str, Said]],
        *,
        cost: Cost | None = None,
        about: str = "",
        over: str | None = None,
    ) -> None:
        begun = time.monotonic()
        said = ask()
        spent = time.monotonic() - begun
        self.book.add(name, said, cost=cost, asking_s=spent, about=about, over=over)

    def _bare(self) -> dict[str, str]:
        return {item.id: text_of(item) for item in self.asked.items}

    # --- what is learned from text ---

    def random(self) -> None:
        """Ask a model of the same shape whose weights were drawn."""
        seed_everything(self.config.seed)
        model = Transformer(self.bundle.model.config).to(self.bundle.model.device)
        drawn = Bundle(model.eval(), self.bundle.tokenizer)
        about = f"{model.config.parameters():,} weights, as they are drawn before training."
        self._line(
            "random model", lambda: self._put(drawn, self.asked.items, self._bare(), bare=True), about=about
        )

    def ngram(self) -> None:
        """Count the training text, and ask what follows."""
        if not self.parts.text:
            return self.book.skip("n-gram", "it is not known what the model was trained on (text)")
        begun = time.monotonic()
        ids = training_ids(self.bundle.tokenizer, self.parts.text, self.config.ngram_tokens)
        counted = NGram.read(ids, self.bundle.tokenizer.vocab_size)
        cost = Cost(time.monotonic() - begun, 0.0, len(ids), 0)
        about = f"Runs of up to five tokens of the same text, counted and smoothed (Kneser–Ney), {len(ids):,} tokens."
        items, most = self.asked.items, self.config.max_tokens
        self._line(
            "n-gram",
            lambda: answer_by_counting(counted, self.bundle.tokenizer, items, self._bare(), max_tokens=most),
            cost=cost,
            about=about,
        )
        return None

    def base(self) -> None:
        """Ask what pretraining left: of a small model, of the model after a part of the text, of the model."""
        costs, small, early = self.parts.costs, self._opened("small"), self._opened("early")
        name = "base"
        if small is None:
            self.book.skip(
                "+ more parameters", self.parts.missing.get("small", "there is no smaller sibling")
            )
        else:
            size = small.model.config.parameters()
            about = f"A sibling of {size / 1e6:.2f} million parameters, asked with the bare question."
            self._bare_line(name, small, costs["small"], about)
            name = "+ more parameters"
        if early is None:
            self.book.skip(
                "+ more data", self.parts.missing.get("early", self.parts.missing.get("more data", ""))
            )
        else:
            size = early.model.config.parameters()
            about = f"{size / 1e6:.2f} million parameters, the same {costs['early'].tokens:,} tokens of text."
            self._bare_line(name, early, costs["early"], about)
            name = "+ more data"
        whole = costs.get("base", Cost())
        about = f"{self.bundle.model.config.parameters() / 1e6:.2f} million parameters, {whole.tokens:,} tokens of text."
        if early is not None:
            first = costs["early"]
            whole = Cost(
                whole.seconds - first.seconds, whole.flops - first.flops, whole.tokens - first.tokens
            )
        self._bare_line(name, self.bundle, whole, about)

    def _bare_line(self, name: str, bundle: Bundle, cost: Cost, about: str) -> None:
        ask = lambda: self._put(bundle, self.asked.items, self._bare(), bare=True)  # noqa: E731 - named for the line below
        self._line(name, ask, cost=cost, about=about)

    def _opened(self, role: str) -> Bundle | None:
        name = self.parts.folders.get(role)
        return None if name is None else load(name, device=self.config.device, dtype=self.config.dtype)

    # --- asking well ---

    def wording(self) -> None:
        """Ask in the wording that is right most often on examples; a kind has its own where another is right more often."""
        some = self.asked.examples[: self.config.chosen_on]
        if not some:
            return self.book.skip(
                "+ better wording", "there are no examples to choose the wording on (examples)"
            )
        begun = time.monotonic()
        said, tokens = self._in_every_wording(some, {one.id: text_of(one) for one in some})
        best = _best(said, [one.id for one in some])
        self.words = WORDINGS[best]
        for kind in sorted({one.kind for one in some}):
            own = [one.id for one in some if one.kind == kind]
            leader = _best(said, own)
            if len(own) >= LEAST_CHOSEN_ON and _rights(said[leader], own) > _rights(said[best], own):
                self.words_of[kind] = WORDINGS[leader]
        cost = Cost(time.monotonic() - begun, self._reading(tokens), tokens, len(some))
        about = f"“{best}”, the best of {len(WORDINGS)} wordings on {len(some)} examples"
        about += f"; another for {', '.join(self.words_of)}." if self.words_of else "."
        self._line("+ better wording", self._ask_base, cost=cost, about=about)
        return None

    def _in_every_wording(
        self, items: Sequence[Item], texts: Mapping[str, str]
    ) -> tuple[dict[str, dict[str, Said]], int]:
        """Ask in all wordings; returns what was said in each, and how many tokens were read."""
        said = {
            name: self._put(
                self.bundle, items, {id: words.format(text) for id, text in texts.items()}, bare=words == BARE
            )
            for name, words in WORDINGS.items()
        }
        return said, sum(one.tokens for found in said.values() for one in found.values())

    def shots(self) -> None:
        """Show examples before the question, of its kind where there are some."""
        examples = self.asked.examples
        if not examples:
            return self.book.skip("+ few-shot", "there are no examples to show (examples)")
        for kind in {item.kind for item in self.asked.items}:
            same = [one for one in examples if one.kind == kind]
            self.shown[kind] = (same or list(examples))[: self.config.k]
        used = len({one.id for some in self.shown.values() for one in some})
        about = f"{self.config.k} examples before each question, of its kind where the examples have it."
        self._line("+ few-shot", self._ask_base, cost=Cost(labels=used), about=about)
        return None

    def steps(self) -> None:
        """Let steps be written before an answer that is a number."""
        counted = [item for item in self.asked.items if item.kind in self.asked.counted]
        if not counted:
            return self.book.skip("+ chain of thought", "no kind of question has numbers for answers")
        self.uses_steps = True
        shown = len(self.asked.worked[:WORKED_SHOWN])
        how = f"{shown} worked examples before them" if shown else f"“{TRIGGER}” behind them"
        about = f"Steps before the answer to {len(counted)} questions about numbers, {how}."
        self._line(
            "+ chain of thought", lambda: self._ask_steps(counted), cost=Cost(labels=shown), about=about
        )
        return None

    def retrieval(self) -> None:
        """Put the best passage before the questions that one fits, in the place of examples, which answer without one."""
        if not self.asked.passages:
            return self.book.skip("+ retrieval", "there are no documents (documents)")
        begun = time.monotonic()
        shelf = Shelf(self.asked.passages, [text_of(one) for one in self.asked.items])
        for item in self.asked.items:
            found = shelf.find(text_of(item), 1)
            if found and found[0].covers >= self.config.covers:
                self.passages[item.id] = found[0].text
        fits = [item for item in self.asked.items if item.id in self.passages]
        about = f"{len(shelf.passages):,} passages; one each, not examples, before the {len(fits)} questions that it fits."
        texts, tokens = self._read_examples(shelf), 0
        if texts:
            some = [one for one in self.asked.examples if one.id in texts]
            said, tokens = self._in_every_wording(some, texts)
            best = _best(said, list(texts))
            self.words_read = WORDINGS[best]
            about += f" “{best}” is the best wording behind a passage on {len(texts)} examples."
        cost = Cost(time.monotonic() - begun, self._reading(tokens), tokens, len(texts))
        self._line("+ retrieval", lambda: self._ask_base_of(fits), cost=cost, about=about)
        return None

    def _read_examples(self, shelf: Shelf) -> dict[str, str]:
        """Give examples that are answered by reading, as texts: those whose answer a passage holds, or which hold one."""
        texts = {}
        for one in self.asked.examples[: self.config.chosen_on]:
            found = shelf.find(text_of(one), 1)
            if found and found[0].covers >= self.config.covers and one.answer in found[0].text:
                texts[one.id] = f"{found[0].text} {text_of(one)}"
            elif one.kind in self.asked.read:
                texts[one.id] = text_of(one)
        return texts

    def _ask_base(self) -> dict[str, Said]:
        return self._ask_base_of(self.asked.items)

    def _ask_base_of(self, items: Sequence[Item]) -> dict[str, Said]:
        said: dict[str, Said] = {}
        for bare in (False, True):
            some = [item for item in items if (self._words(item) == BARE) == bare]
            prompts = {item.id: self._shown_before(item, self.config.max_tokens) for item in some}
            said |= self._put(self.bundle, some, prompts, bare=bare)
        return said

    def _words(self, item: Item) -> str:
        if item.id in self.passages and self.words_read is not None:
            return self.words_read
        return self.words_of.get(item.kind, self.words)

    def _shown_before(self, item: Item, room: int) -> str:
        """Put as many examples before a question without a passage as fit, the nearest ones first; the question is never cut."""
        words = self._words(item)
        asked = words.format(self._with_passage(item))
        shown = () if item.id in self.passages else self.shown.get(item.kind, ())
        parts = [f"{words.format(text_of(one))} {one.answer}\n" for one in shown]
        return _fitting(self.bundle, parts, asked, room)

    def _ask_steps(self, items: Sequence[Item]) -> dict[str, Said]:
        """Write steps with the base model; the given answers are weighed as they were."""
        before = self.book.answers[self.book.last or ""]
        if not self.asked.worked:
            said = self._think(items)
        else:
            prompts = {one.id: self._worked_before(one) for one in items}
            said = self._put(self.bundle, items, prompts, steps=True)
        return {
            id: Said(one.reply, before[id].choice, worth(item, one.reply), one.tokens)
            for item in items
            if (one := said.get(id := item.id)) is not None
        }

    def _worked_before(self, item: Item) -> str:
        words = self._words(item)
        parts = [
            f"{words.format(question)} {steps.rstrip('.')}. {FINAL} {right}.\n"
            for question, steps, right in self.asked.worked[:WORKED_SHOWN]
        ]
        return _fitting(self.bundle, parts, words.format(self._with_passage(item)), self.config.steps_tokens)

    def _think(self, items: Sequence[Item]) -> dict[str, Said]:
        """Ask for steps and then for the answer; questions that leave no room for both keep the answer they have."""
        most = min(self.config.steps_tokens, self.bundle.context // 4)
        frame = f" {TRIGGER} {ENDINGS['number']} What is the answer? Give only the answer."
        room = self.bundle.context - 2 * most  # what was written may be more tokens when it is read again
        fits = [one for one in items if len(self.bundle.encode(text_of(one) + frame)) + 24 <= room]
        sampling = Sampling(temperature=0.0, max_tokens=most)
        found = think(Engine(self.bundle, slots=16), [text_of(one) for one in fits], sampling=sampling)
        return {one.id: Said(t.answer or "", None, 0.0, t.tokens) for one, t in zip(fits, found, strict=True)}

    def _with_passage(self, item: Item) -> str:
        passage = self.passages.get(item.id)
        return text_of(item) if passage is None else f"{passage} {text_of(item)}"

    # --- what is learned from people ---

    def tuned(self, role: str, name: str) -> None:
        """Ask a tuned model in messages, with the passages and the wish for steps that the lines before put in."""
        bundle = self._opened(role)
        if bundle is None:
            return self.book.skip(name, self.parts.missing[role])
        over = None if role == "tuned" else "+ instruction tuning"
        if over is not None and over not in self.book.answers:
            over = None
        about = {"tuned": "Asked in messages, the answers to conversations learned."}.get(
            role, "From the tuned model and comparisons of answers."
        )
        self._line(
            name, lambda: self._ask_tuned(bundle), cost=self.parts.costs.get(role), about=about, over=over
        )
        return None

    def _ask_tuned(self, bundle: Bundle) -> dict[str, Said]:
        chat, items = bundle.template is not None, self.asked.items
        said = self._put(bundle, items, {one.id: self._with_passage(one) for one in items}, chat=chat)
        counted = [one for one in items if one.kind in self.asked.counted and one.id not in self.passages]
        if self.uses_steps and counted:
            prompts = {one.id: f"{text_of(one)} {TRIGGER}" for one in counted}
            thought = self._put(bundle, counted, prompts, chat=chat, steps=True)
            for one in counted:
                new = thought[one.id]
                said[one.id] = Said(new.reply, said[one.id].choice, new.worth, new.tokens)
        return said

    def _reading(self, tokens: int) -> float:
        return self.bundle.model.config.flops_per_token() / 3 * tokens


def text_of(item: Item) -> str:
    """Give what an item asks, as plain text."""
    return item.question or item.prompt or ""


def _rights(said: Mapping[str, Said], ids: Sequence[str]) -> float:
    return sum(said[id].right for id in ids)


def _best(said: Mapping[str, Mapping[str, Said]], ids: Sequence[str]) -> str:
    """Name the wording in which most of these questions were answered rightly; of equal ones, whose choices were."""
    return max(
        said, key=lambda name: (_rights(said[name], ids), sum(said[name][id].choice or 0.0 for id in ids))
    )


def _fitting(bundle: Bundle, parts: Sequence[str], asked: str, room: int) -> str:
    left = list(parts)
    while left and len(bundle.encode("".join(left) + asked)) + room > bundle.context:
        left.pop(0)
    return "".join(left) + asked


def training_ids(tokenizer: Tokenizer, sources: Sequence[str], most: int) -> np.ndarray:
    """Read at most so many tokens of text, each document ended by its id."""
    ends = [one for one in (tokenizer.eos_id,) if one is not None]
    found: list[np.ndarray] = []
    tokens, texts = 0, iter(read_texts(sources))
    while tokens < most and (some := list(islice(texts, 1000))):
        for ids in tokenizer.encode_batch(some):
            found.append(np.append(ids, ends).astype(np.int64))
            tokens += len(found[-1])
    return np.concatenate(found)[:most]
