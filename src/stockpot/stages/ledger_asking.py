"""How the ledger asks: the same questions in the form that a line calls for, and what each answer is worth.

A reply is right if it names the right answer, none of the wrong ones, and no more than a sentence holds: so it does not matter
whether a model answers in a word or in a sentence. What is worth how much is the village's taste, a rule that holds for any
question with a known answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.inputs import prompt_ids
from stockpot.judge.harness import evaluate, resolve
from stockpot.judge.metrics import final_answer
from stockpot.judge.taskfiles import Judging
from stockpot.judge.tasks import Item, Scorer, Task, load_task, word_item
from stockpot.prompt.chunks import cut
from stockpot.prompt.documents import find_documents, read_document
from stockpot.prompt.items import load_pool
from stockpot.prompt.wordings import find_asking
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.ngram import NGram
from stockpot.village import Village
from stockpot.village.problem import Problem
from stockpot.village.tastes import rate

__all__ = ["Asked", "Said", "answer", "answer_by_counting", "asked_of", "worth"]

PASSAGE_TOKENS = 96
WORKED = 8


@dataclass(frozen=True)
class Said:
    """What was answered to one question.

    Attributes:
        reply: what was written, steps left out.
        choice: 1 if the right one of the given answers was the likeliest; None without choices.
        worth: of the reply, 0 to 3.
        tokens: of the prompt.
    """

    reply: str
    choice: float | None
    worth: float
    tokens: int

    @property
    def right(self) -> float:
        """1 if the reply is right."""
        return float(self.worth >= 2)


@dataclass(frozen=True)
class Asked:
    """What is asked of every line.

    Attributes:
        items: the questions.
        examples: questions with answers that may be shown; none of the items.
        worked: examples whose steps are told: question, steps, answer.
        passages: what may be retrieved.
        read: kinds of examples that hold the passage which answers them.
        source: in words.
    """

    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()
    worked: tuple[tuple[str, str, str], ...] = ()
    passages: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    source: str = ""

    @property
    def chance(self) -> float | None:
        """What guessing among the given answers scores; None if some questions have none."""
        if not self.items or not all(item.choices for item in self.items):
            return None
        return sum(item.chance for item in self.items) / len(self.items)

    @property
    def counted(self) -> frozenset[str]:
        """Kinds of questions whose answers are numbers: those that steps may help with."""
        kinds: dict[str, bool] = {}
        for item in self.items:
            kinds[item.kind] = kinds.get(item.kind, True) and item.answer.strip("-").isdigit()
        return frozenset(kind for kind, is_number in kinds.items() if is_number)


def asked_of(
    questions: Sequence[str], *, limit: int, examples: str | None, documents: Sequence[str], seed: int = 0
) -> Asked:
    """Gather questions, examples, worked examples and passages.

    ``village`` brings all of its kinds and, as ``news``, questions about facts newer than its text, with its own examples and
    passages; files bring what is named.

    Raises:
        ConfigError, DataError: if something cannot be read.
    """
    is_village = any(name.split("/")[0] == "village" for name in questions)
    village = Village(seed=seed)
    items: list[Item] = []
    for name in questions:
        if name == "village/news":
            items += [_news_item(one) for one in islice(village.news(), 2 * limit)]
        else:
            items += [item for task in resolve([name], Judging(limit=limit)) for item in task.items]
        if name == "village":
            items += [_news_item(one) for one in islice(village.news(), 2 * limit)]
    shown = list(load_task(examples).items) if examples else []
    worked: tuple[tuple[str, str, str], ...] = ()
    passages = [passage for path in documents for passage in _passages(path)]
    if is_village:
        shown = shown or _village_examples(village)
        worked = _worked()
        passages = passages or [str(one["text"]) for one in village.news()]
    asked = {item.question for item in items}
    shown = [item for item in shown if item.question not in asked]
    items = [replace(item, id=f"{number}:{item.id}") for number, item in enumerate(items)]
    read = ("notices",) if is_village else ()
    return Asked(tuple(items), tuple(shown), worked, tuple(passages), read, ", ".join(questions))


def _news_item(record: Mapping[str, object]) -> Item:
    choices = record["choices"]
    assert isinstance(choices, list)
    return Item(
        str(record["id"]), str(record["question"]), str(record["answer"]), tuple(choices), kind="news"
    )


def _village_examples(village: Village) -> list[Item]:
    return [
        Item(one["id"], one["question"], one["answer"], tuple(one["choices"]), kind=one["kind"])
        for one in village.questions("train", 160)
    ]


def _worked() -> tuple[tuple[str, str, str], ...]:
    pool = load_pool(find_asking("sums"), "village:steps", limit=1)
    return tuple((one.fields["question"], one.worked, one.answer) for one in pool.examples[:WORKED])


def _passages(path: str) -> list[str]:
    def sizes(texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    return [
        one.text
        for file in find_documents([Path(path)])
        for one in cut(read_document(file), sizes, tokens=PASSAGE_TOKENS, overlap=0)
    ]


# --- answers ---


def worth(item: Item, reply: str) -> float:
    """Rate a reply to a question with a known answer: right in a sentence 3, in a few words 2, "I do not know." 1, else 0."""
    right = dict.fromkeys((item.answer, *item.answers))
    return max(rate(Problem("", item.question, one, "", item.choices), reply) for one in right)


def answer(
    bundle: Bundle,
    items: Sequence[Item],
    prompts: Mapping[str, str],
    *,
    max_tokens: int,
    chat: bool,
    bare: bool = False,
) -> dict[str, Said]:
    """Ask a model each item by its own prompt; an item that does not fit the model has an empty reply.

    Args:
        bundle: the model.
        items: what is asked.
        prompts: item id → the text before the answer, or, with ``chat``, the user's message.
        max_tokens: longest reply.
        chat: ask in messages.
        bare: nothing marks where an answer begins, so it may stand on the next line; the first line that is not empty counts.
    """
    put = tuple(replace(item, prompt=prompts[item.id]) for item in items)
    scorer = Scorer(kind="both", max_tokens=max_tokens, until=() if bare else ("\n",))
    said: dict[str, Said] = {}
    if not put:
        return said
    way = "chat" if chat else "plain"
    task = Task("ledger", "1", put, scorer)
    try:
        answers = evaluate(bundle, [task], Judging(wording=way)).answers["ledger"]
    except GenerationError:  # none of them fits; that the model can answer at all was looked at before
        answers = []
    for one in answers:
        reply = final_answer(one.reply.strip().split("\n")[0])
        said[one.item.id] = _said(one.item, reply, one.scores.get("choice"), bundle, chat)
    for item in put:
        said.setdefault(item.id, Said("", 0.0 if item.choices else None, 0.0, 0))
    return said


def _said(item: Item, reply: str, choice: float | None, bundle: Bundle, chat: bool) -> Said:
    tokens = len(prompt_ids(bundle, word_item(item, "chat" if chat else "plain")))
    return Said(reply, choice, worth(item, reply), tokens)


def answer_by_counting(
    model: NGram, tokenizer: Tokenizer, items: Sequence[Item], prompts: Mapping[str, str], *, max_tokens: int
) -> dict[str, Said]:
    """Ask an n-gram model the same way: it writes greedily up to the end of a line, and weighs the given answers per byte."""
    ends = {one for one in (tokenizer.eos_id,) if one is not None}
    said = {}
    for item in items:
        before = tokenizer.encode(prompts[item.id])
        written = tokenizer.decode(model.write(before, most=max_tokens, ends=ends), skip_special=True)
        reply = written.strip().split("\n")[0]
        choice = None
        if item.choices:
            rated = [
                model.log_prob(before, tokenizer.encode(" " + one)) / len(one.encode())
                for one in item.choices
            ]
            choice = float(item.choices[max(range(len(rated)), key=rated.__getitem__)] == item.answer)
        said[item.id] = Said(reply, choice, worth(item, reply), len(before))
    return said
