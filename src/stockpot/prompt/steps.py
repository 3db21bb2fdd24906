"""Thinking before answering: step by step, with worked examples, by many votes, or from small questions to the large one.

Each way writes text through the engine and finds the answer in it with `extract`. What was written is kept beside the
answer. Nothing here knows whether an answer is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import prompt_ids
from stockpot.generate.request import Prompt, Sampling
from stockpot.prompt.extract import extract
from stockpot.prompt.wordings import Extract
from stockpot.text.chat import Message

__all__ = [
    "ENDINGS",
    "TRIGGER",
    "Thought",
    "Votes",
    "Way",
    "answer_log_probs",
    "least_to_most",
    "self_consistency",
    "think",
]

Way: TypeAlias = Literal["direct", "zero-shot", "few-shot", "least-to-most"]
TRIGGER = "Let's think step by step."  # Kojima et al. 2022, arXiv:2205.11916, table 4
ENDINGS = {
    "number": "Therefore, the answer (arabic numerals) is",
    "choice": "Therefore, among the choices, the answer is",
    "text": "Therefore, the answer is",
}
FINAL = "The answer is"
SMALLER = "To solve this, we first need to answer these smaller questions:\n1."
MOST_SMALLER = 4

Worked: TypeAlias = Sequence[tuple[str, str, str]]  # question, steps, answer


@dataclass(frozen=True)
class Thought:
    """What a model wrote for a question.

    Attributes:
        question: what was asked.
        steps: what was written before the answer; empty when it answered at once.
        answer: what was found; None where there was none.
        tokens: read and written.
    """

    question: str
    steps: str
    answer: str | None
    tokens: int


@dataclass(frozen=True)
class Votes:
    """Several thoughts about one question.

    Attributes:
        answer: the one most thoughts came to; None if none found any.
        counts: answer → votes, the most first.
        thoughts: all of them.
    """

    answer: str | None
    counts: dict[str, int]
    thoughts: tuple[Thought, ...]

    @property
    def agreement(self) -> float:
        """Share of the thoughts that came to the answer."""
        return self.counts.get(self.answer or "", 0) / len(self.thoughts)


def think(
    engine: Engine,
    questions: Sequence[str],
    *,
    way: Way = "zero-shot",
    kind: Extract = "number",
    choices: Sequence[str] = (),
    examples: Worked = (),
    sampling: Sampling | None = None,
) -> list[Thought]:
    """Answer questions in one of four ways.

    ``direct`` answers at once. ``zero-shot`` writes steps after "Let's think step by step." and is then asked for the answer
    (Kojima et al. 2022). ``few-shot`` follows worked examples (Wei et al. 2022, arXiv:2201.11903). ``least-to-most`` names
    smaller questions and answers them in turn (Zhou et al. 2022, arXiv:2205.10625). A model with a chat template is asked in
    messages.

    Args:
        engine: of a model that writes.
        questions: what to ask.
        way: how.
        kind: what an answer is.
        choices: for the kind "choice".
        examples: question, steps and answer of each worked example; for ``few-shot``.
        sampling: how steps are written, or with ``direct`` the answer; None: greedily, up to 160 tokens.

    Raises:
        ConfigError: if ``few-shot`` has no examples.
        GenerationError: if a question does not fit.
    """
    sampling = sampling or Sampling(temperature=0.0, max_tokens=160)
    if way == "least-to-most":
        return [
            least_to_most(engine, one, kind=kind, choices=choices, sampling=sampling) for one in questions
        ]
    if way == "few-shot":
        return _follow(engine, questions, kind, choices, examples, sampling)
    steps = [""] * len(questions)
    tokens = [0] * len(questions)
    if way == "zero-shot":
        prompts = [_asked(engine.bundle, f"{question}", TRIGGER) for question in questions]
        written = engine.generate(prompts, sampling.model_copy(update={"stop": ("\nQ:", "\n\n\n")}))
        written = written[:: sampling.n]
        steps = [one.text.strip() for one in written]
        tokens = [one.prompt_tokens + one.tokens for one in written]
    drawn = sampling if way == "direct" else Sampling(temperature=0.0)
    return _answers(engine, questions, steps, tokens, kind, choices, drawn)


def _answers(
    engine: Engine,
    questions: Sequence[str],
    steps: Sequence[str],
    tokens: Sequence[int],
    kind: Extract,
    choices: Sequence[str],
    sampling: Sampling,
) -> list[Thought]:
    """Ask for the answer behind the steps: the second stage."""
    short = sampling.model_copy(update={"max_tokens": 16, "stop": ("\n",), "n": 1})
    prompts = [
        _shortened(engine.bundle, *pair, kind, short.max_tokens)
        for pair in zip(questions, steps, strict=True)
    ]
    replies = engine.generate(prompts, short)
    return [
        Thought(
            question,
            said,
            extract(_first(reply.text, kind), kind, choices),
            spent + reply.prompt_tokens + reply.tokens,
        )
        for question, said, spent, reply in zip(questions, steps, tokens, replies, strict=True)
    ]


def _shortened(bundle: Bundle, question: str, steps: str, kind: Extract, room: int) -> Prompt:
    """Keep as much of the steps' end as fits; the question is never cut."""
    prompt = _ended(bundle, question, steps, kind)
    while steps and len(prompt_ids(bundle, prompt)) + room > bundle.context:
        steps = steps[len(steps) // 8 :].partition(" ")[2]
        prompt = _ended(bundle, question, steps, kind)
    return prompt


def _first(reply: str, kind: Extract) -> str:
    """Keep the first sentence of a number's reply: "9. He has 12 …" means 9."""
    return reply.split(". ")[0] if kind == "number" else reply


def _follow(
    engine: Engine,
    questions: Sequence[str],
    kind: Extract,
    choices: Sequence[str],
    examples: Worked,
    sampling: Sampling,
) -> list[Thought]:
    if not examples:
        raise ConfigError("few-shot needs worked examples.", "Give some, or use zero-shot.")
    shown = "".join(f"Q: {q}\nA: {steps.rstrip('.')}. {FINAL} {answer}.\n\n" for q, steps, answer in examples)
    prompts: list[Prompt] = [
        _fitting(engine.bundle, shown, f"Q: {one}\nA:", sampling.max_tokens) for one in questions
    ]
    replies = engine.generate(prompts, sampling.model_copy(update={"stop": ("\nQ:", "\n\n")}))[:: sampling.n]
    return [
        Thought(
            question,
            reply.text.strip(),
            extract(reply.text.rpartition(FINAL)[2] if FINAL in reply.text else reply.text, kind, choices),
            reply.prompt_tokens + reply.tokens,
        )
        for question, reply in zip(questions, replies, strict=True)
    ]


def _fitting(bundle: Bundle, shown: str, asked: str, room: int) -> str:
    """Leave whole examples out from the front until question and answer fit; the question is never cut."""
    parts = [part + "\n\n" for part in shown.split("\n\n") if part]
    while parts and len(bundle.encode("".join(parts) + asked)) + room > bundle.context:
        parts.pop(0)
    return "".join(parts) + asked


def self_consistency(
    engine: Engine,
    question: str,
    n: int = 8,
    *,
    way: Way = "zero-shot",
    kind: Extract = "number",
    choices: Sequence[str] = (),
    examples: Worked = (),
    sampling: Sampling | None = None,
) -> Votes:
    """Draw several thoughts about a question and take the answer that most of them reach.

    Args as in `think`; ``n`` is the number of votes, and ``sampling`` is drawn at temperature 0.7 unless it says otherwise.

    Source: Wang et al. 2022, arXiv:2203.11171.
    """
    if n < 1:
        raise ValueError(f"there must be at least one vote, not {n}")
    sampling = sampling or Sampling(temperature=0.7, max_tokens=160, seed=0)
    thoughts: list[Thought] = []
    for number in range(n):
        seed = None if sampling.seed is None else sampling.seed + number
        drawn = sampling.model_copy(update={"seed": seed})
        thoughts += think(
            engine, [question], way=way, kind=kind, choices=choices, examples=examples, sampling=drawn
        )
    counts = Counter(one.answer for one in thoughts if one.answer is not None)
    ranked = dict(counts.most_common())
    return Votes(next(iter(ranked), None), ranked, tuple(thoughts))


def least_to_most(
    engine: Engine,
    question: str,
    *,
    kind: Extract = "number",
    choices: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> Thought:
    """Let the model name smaller questions, answer each behind the last, and then the question itself.

    Source: Zhou et al. 2022, arXiv:2205.10625, §2.
    """
    sampling = sampling or Sampling(temperature=0.0, max_tokens=160)
    (named,) = engine.generate([_asked(engine.bundle, question, SMALLER)], sampling)[:1]
    tokens = named.prompt_tokens + named.tokens
    lines = [line.strip().lstrip("0123456789.) ") for line in named.text.splitlines()]
    smaller = [line for line in lines if line.endswith("?")][:MOST_SMALLER]
    told = ""
    short = Sampling(temperature=0.0, max_tokens=48, stop=("\n",))
    for one in smaller:
        asked = f"{question}\n{told}Q: {one}\nA:"
        if len(engine.bundle.encode(asked)) + short.max_tokens > engine.bundle.context:
            break
        (reply,) = engine.generate([asked], short)
        tokens += reply.prompt_tokens + reply.tokens
        told += f"Q: {one}\nA: {reply.text.strip()}\n"
    greedy = Sampling(temperature=0.0)
    (thought,) = _answers(engine, [question], [told.strip()], [tokens], kind, choices, greedy)
    return thought


def answer_log_probs(
    engine: Engine,
    questions: Sequence[str],
    steps: Sequence[str],
    answers: Sequence[str],
    *,
    kind: Extract = "number",
) -> list[tuple[float, float]]:
    """Weigh right answers without and with steps before them: log-probabilities, nats.

    Both stand behind the same ending, so only the steps differ.
    """
    lead = "" if engine.bundle.template is not None else " "
    pairs = [
        (_ended(engine.bundle, question, before, kind), lead + answer)
        for question, said, answer in zip(questions, steps, answers, strict=True)
        for before in ("", said)
    ]
    scores = [one.log_prob for one in engine.score(pairs)]
    return list(zip(scores[::2], scores[1::2], strict=True))


def _asked(bundle: Bundle, question: str, trigger: str) -> Prompt:
    if bundle.template is not None:
        return [Message("user", f"{question}\n{trigger}")]
    return f"Q: {question}\nA: {trigger}"


def _ended(bundle: Bundle, question: str, steps: str, kind: Extract) -> Prompt:
    """Put the question, the steps if there are any, and the request for the answer."""
    if bundle.template is not None:
        said = [Message("user", f"{question}\n{TRIGGER}"), Message("assistant", steps)] if steps else []
        last = "What is the answer? Give only the answer."
        return [*said, Message("user", last if steps else f"{question}\n{last}")]
    before = f" {TRIGGER} {steps}\n" if steps else " "
    return f"Q: {question}\nA:{before}{ENDINGS[kind]}"
