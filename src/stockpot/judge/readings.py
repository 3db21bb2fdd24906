"""How records of published data sets become fields, where names alone do not say it.

Pure functions on records; each complaint is a `DataError` that starts with ``file:line``. The rules (cleaning, joining, order of
choices) are those of lm-evaluation-harness, so that scores can be compared with it; tests hold the two side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stockpot.errors import DataError

__all__ = ["READINGS", "Fields", "described", "gold_of", "options_of"]


@dataclass(frozen=True)
class Fields:
    """What a task needs of a record.

    Attributes:
        values: what the templates speak of.
        choices: texts to choose among.
        labels: their labels in the record, by which it may name the right one.
        gold: what the record says is right.
        right: what each choice is worth, where the record says more than one number.
        answer: the right free answer.
        answers: further right ones.
        contexts: a text before each choice, where they differ.
        facts: what the scorer needs besides.
    """

    values: Mapping[str, Any]
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    gold: Any = None
    right: tuple[float, ...] = ()
    answer: str = ""
    answers: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    question: str = ""
    kind: str = ""
    id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def described(record: Mapping[str, Any]) -> str:
    """List the names in a record, for a message."""
    return ", ".join(map(str, list(record)[:12])) or "nothing"


def options_of(
    record: Mapping[str, Any], names: Sequence[str], columns: Sequence[Sequence[str]], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the choices of a record and their labels; none where the task has no options.

    A list of texts, label → text, the hub's ``{"text": […], "label": […]}``, or columns of their own.
    """
    found = next((record[name] for name in names if record.get(name) is not None), None)
    labels: tuple[str, ...] = ()
    if found is None and columns:
        found = [
            next((record[name] for name in some if record.get(name) is not None), None) for some in columns
        ]
        if None in found:
            missing = " or ".join(columns[found.index(None)])
            raise DataError(f"{where}: {missing} is missing (found: {described(record)}).")
    elif found is None and names:
        raise DataError(f"{where}: there is no {' or '.join(names)} (found: {described(record)}).")
    if found is None:
        return (), ()
    if isinstance(found, Mapping) and {"text", "label"} <= set(found):
        if not isinstance(found["label"], list | tuple):
            raise DataError(f"{where}: the labels must be a list.")
        labels, found = tuple(map(str, found["label"])), found["text"]
    elif isinstance(found, Mapping):
        labels, found = tuple(map(str, found)), list(found.values())
    found = _texts(found, where)
    if len(found) < 2:
        said = "the choices are empty" if not found else "one choice is no choice"
        raise DataError(f"{where}: {said}.", "Give at least two.")
    return found, labels


def _texts(found: object, where: str) -> tuple[str, ...]:
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise DataError(f"{where}: the choices must be texts.")
    return tuple(found)


def gold_of(
    gold: object,
    choices: Sequence[str],
    labels: Sequence[str],
    spellings: Mapping[str, Sequence[str]],
    where: str,
) -> tuple[float, ...]:
    """Say what each choice is worth, from what a record calls right: a spelling, a label, a number or a text.

    Raises:
        DataError: if it names none of the choices.
    """
    text = str(gold).strip()
    place: int | None = None
    for number, known in spellings.items():
        if text in known:
            place = int(number)
    if place is None and text in labels:
        place = list(labels).index(text)
    if place is None and (isinstance(gold, int) or re.fullmatch(r"-?\d{1,9}", text)):
        place = int(gold) if isinstance(gold, int) else int(text)
        if not 0 <= place < len(choices):
            raise DataError(
                f"{where}: the right choice is number {place}, but there are {len(choices)} (0 to {len(choices) - 1}).",
                "Choices are counted from 0.",
            )
    if place is None and text in choices:
        place = list(choices).index(text)
    if place is None or place >= len(choices):
        raise DataError(
            f"{where}: the answer {text!r} is none of the choices.",
            f"They are named {', '.join(labels or map(str, range(len(choices))))}.",
        )
    return tuple(float(number == place) for number in range(len(choices)))


# --- data sets with rules of their own ---


def _text(record: Mapping[str, Any], where: str, *names: str) -> str:
    value = next((record[name] for name in names if isinstance(record.get(name), str)), None)
    if value is None:
        raise DataError(f"{where}: {names[0]!r} is missing (found: {described(record)}).")
    return str(value)


def _hellaswag(record: Mapping[str, Any], where: str) -> Fields:
    def clean(text: str) -> str:
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    start = f"{_text(record, where, 'ctx_a')} {_text(record, where, 'ctx_b').capitalize()}"
    endings, _ = options_of(record, ("endings",), (), where)
    query = clean(f"{_text(record, where, 'activity_label')}: {start}")
    return Fields({"query": query}, choices=tuple(map(clean, endings)), gold=record.get("label"))


def _winogrande(record: Mapping[str, Any], where: str) -> Fields:
    """Put each name into the gap; the text behind the gap is what is scored."""
    sentence = _text(record, where, "sentence", "question")
    before, gap, behind = sentence.partition("_")
    if not gap:
        raise DataError(f"{where}: the sentence has no gap ( _ ).")
    names, _ = options_of(record, ("choices",), (("option1",), ("option2",)), where)
    names = tuple(name.removesuffix("Answer format: option1/option2").strip() for name in names)
    right = gold_of(record.get("answer"), names, ("1", "2"), {}, where)
    contexts = tuple(before + name for name in names)
    return Fields({}, choices=(behind.strip(),) * 2, right=right, contexts=contexts, question=sentence)


def _truthfulqa(record: Mapping[str, Any], where: str, *, all_right: bool) -> Fields:
    question = _text(record, where, "question")
    targets = record.get("mc2_targets" if all_right else "mc1_targets")
    if isinstance(targets, Mapping):  # as on the hub
        labels = targets.get("labels")
        if not isinstance(labels, list) or not all(isinstance(one, int | float) for one in labels):
            raise DataError(f"{where}: the targets need labels, a number each.")
        choices, right = targets.get("choices"), tuple(map(float, labels))
    else:
        true, false = record.get("correct"), record.get("incorrect")
        if not isinstance(true, list) or not isinstance(false, list) or not true or not false:
            raise DataError(f"{where}: there are no right and wrong answers (found: {described(record)}).")
        true = true if all_right else [record.get("best") or true[0]]
        choices, right = (*true, *false), (1.0,) * len(true) + (0.0,) * len(false)
    return Fields(
        {"question": question},
        choices=_texts(choices, where),
        right=right,
        question=question,
        kind=str(record.get("category", "")),
    )


def _lambada(record: Mapping[str, Any], where: str) -> Fields:
    """Part the last word from the rest."""
    words = _text(record, where, "text").split(" ")
    if len(words) < 2:
        raise DataError(f"{where}: the text has a single word.")
    return Fields({"start": " ".join(words[:-1])}, answer=words[-1])


def _blimp(record: Mapping[str, Any], where: str) -> Fields:
    good, bad = _text(record, where, "sentence_good", "good"), _text(record, where, "sentence_bad", "bad")
    return Fields(
        {},
        choices=(good, bad),
        right=(1.0, 0.0),
        question=good,
        kind=str(record.get("phenomenon") or record.get("UID", "")),
    )


def _humaneval(record: Mapping[str, Any], where: str) -> Fields:
    prompt = _text(record, where, "prompt")
    test, entry = _text(record, where, "test"), _text(record, where, "entry_point")
    facts = {"begin": prompt, "tests": f"{test}\ncheck({entry})\n", "setup": prompt, "entry": [entry]}
    return Fields(
        {"prompt": prompt},
        answer=str(record.get("canonical_solution", "")),
        question=prompt,
        id=str(record.get("task_id", "")),
        facts=facts,
    )


def _mbpp(record: Mapping[str, Any], where: str) -> Fields:
    text, tests = _text(record, where, "text", "prompt"), record.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(one, str) for one in tests):
        raise DataError(f"{where}: there are no tests (found: {described(record)}).")
    setup, code = str(record.get("test_setup_code") or ""), _text(record, where, "code")
    defined = re.findall(
        r"^(?:def|class) (\w+)", code, re.MULTILINE
    )  # one is called sum, which would else be Python's
    entry = [name for name in defined if re.search(rf"\b{name}\(", "\n".join(tests))]
    facts = {"begin": "", "tests": "\n".join(tests) + "\n", "setup": setup, "entry": entry}
    return Fields(
        {"text": text, "tests": tests[:3]},
        answer=code,
        question=text,
        id=str(record.get("task_id", "")),
        facts=facts,
    )


def _translate(record: Mapping[str, Any], where: str) -> Fields:
    """Read a function in another language and the tests its Python must pass: ours, or a record of HumanEval-X."""
    if isinstance(record.get("cpp"), Mapping) and isinstance(record.get("python"), Mapping):
        source, python = record["cpp"], record["python"]
        code = _text(source, where, "declaration") + _text(source, where, "canonical_solution")
        declared = list(
            re.finditer(r"^def (\w+)\([^\n]*:[ \t]*$", _text(python, where, "declaration"), re.MULTILINE)
        )
        if not declared:
            raise DataError(f"{where}: the Python declaration names no function.")
        begin = python["declaration"][: declared[-1].end()] + "\n"
        facts = {
            "begin": begin,
            "setup": begin + "    pass\n",
            "tests": _text(python, where, "test") + "\n",
            "entry": [declared[-1][1]],
        }
        values = {"language": "C++", "code": code.strip(), "begin": facts["begin"].rstrip()}
        return Fields(
            values,
            answer=_text(python, where, "canonical_solution"),
            id=str(record.get("id", "")),
            facts=facts,
        )
    code, calls = _text(record, where, "code"), record.get("calls")
    name = _text(record, where, "function")
    if not isinstance(calls, list) or not calls or not all(isinstance(one, list) and one for one in calls):
        raise DataError(
            f"{where}: calls must be a list of lists of arguments.", 'Example: "calls": [[1], [41]].'
        )
    begin = _text(record, where, "begin")
    facts = {"begin": f"{begin}\n", "setup": "", "entry": [name], "c": code, "function": name, "calls": calls}
    values = {"language": "C", "code": code.strip(), "begin": begin}
    return Fields(values, answer=str(record.get("python", "")), id=str(record.get("id", name)), facts=facts)


READINGS: dict[str, Callable[[Mapping[str, Any], str], Fields]] = {
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "truthfulqa_mc1": lambda record, where: _truthfulqa(record, where, all_right=False),
    "truthfulqa_mc2": lambda record, where: _truthfulqa(record, where, all_right=True),
    "lambada": _lambada,
    "blimp": _blimp,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "translate": _translate,
}
"""Name → how a record of that data set is read."""
