"""Judge programs that a model wrote: build them from its answers, run their tests, count passes.

HumanEval, MBPP and translations into Python all become the same: a program, tests, and the functions the tests call. A C function
that is to be translated is compiled and run first, and its results are the tests. Everything runs in `sandbox`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from stockpot.errors import ConfigError
from stockpot.judge.asking import Outcome
from stockpot.judge.sandbox import Limits, Verdict, check_sandbox, run_c, run_tests
from stockpot.judge.scoring import Answer
from stockpot.judge.tasks import Item, Scorer

__all__ = ["c_tests", "check_running", "pass_at_k", "program_of", "run_program", "run_programs"]

KS = (1, 10, 100)
Progress = Callable[[dict[str, Any]], None]


def check_running(is_allowed: bool) -> None:
    """Refuse to run programs without leave, or where they cannot be confined.

    Raises:
        ConfigError: saying which of the two.
    """
    if not is_allowed:
        raise ConfigError(
            "This task runs programs that the model wrote, and nobody has allowed that.",
            "Allow it with --run-code (run_code=True); they run in a sandbox without network, homes or your files.",
        )
    check_sandbox()


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Estimate the chance that one of k programs passes, from how many of some samples did.

    >>> round(pass_at_k(10, 3, 1), 3), round(pass_at_k(10, 3, 5), 3)
    (0.3, 0.917)

    Raises:
        ValueError: unless ``0 <= passed <= samples`` and ``1 <= k <= samples``.

    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= passed <= samples and 1 <= k <= samples, got {passed}, {samples}, {k}")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def program_of(reply: str, begin: str = "") -> str:
    """Make a whole program of what the model was given to begin with and what it wrote; of a fenced block, if there is one."""
    fenced = re.search(r"```(?:python|py)?\n(.*?)(?:```|\Z)", reply, re.DOTALL)
    if fenced is not None:
        return str(fenced[1])
    return begin + reply


def run_program(item: Item, reply: str, limits: Limits) -> Verdict:
    """Run an item's tests against one answer.

    Raises:
        ConfigError: if programs cannot be confined here.
    """
    facts = item.facts
    return run_tests(
        program_of(reply, str(facts.get("begin", ""))),
        str(facts["tests"]),
        setup=str(facts.get("setup", "")),
        entry=[str(one) for one in facts.get("entry", ())],
        limits=limits,
    )


def run_programs(
    items: Sequence[Item], outcomes: Sequence[Outcome], scorer: Scorer, progress: Progress | None = None
) -> list[Answer]:
    """Judge all programs, as many at once as there are processors.

    A problem whose own tests cannot be made (its C does not compile) fails, and the note says so.
    """
    limits = Limits(wall_s=scorer.timeout_s)
    jobs = [
        _Job(item, reply) for item, outcome in zip(items, outcomes, strict=True) for reply in outcome.replies
    ]
    done: list[Verdict] = []
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1))) as pool:
        for verdict in pool.map(lambda job: job.run(limits), jobs):
            done.append(verdict)
            if progress is not None:
                progress({"kind": "step", "step": len(done), "steps": len(jobs)})
    verdicts = iter(done)
    answers = []
    for item, outcome in zip(items, outcomes, strict=True):
        own = [next(verdicts) for _ in outcome.replies]
        passed = sum(one.passed for one in own)
        scores = {f"pass@{k}": pass_at_k(len(own), passed, k) for k in KS if k <= len(own)}
        if outcome.log_probs:
            scores["log_prob"] = outcome.log_probs[0] / outcome.tokens[0]
        shown = next(
            (reply for reply, one in zip(outcome.replies, own, strict=True) if one.passed), outcome.replies[0]
        )
        note = f"{passed} of {len(own)} pass" if passed else next((one.why for one in own), "")
        answers.append(Answer(item, shown, None, scores, {}, outcome.log_probs, note))
    return answers


@dataclass(frozen=True)
class _Job:
    item: Item
    reply: str

    def run(self, limits: Limits) -> Verdict:
        item = self.item
        if "c" in item.facts:
            made = c_tests(item.facts)
            if isinstance(made, Verdict):
                return made
            item = Item(item.id, item.question, item.answer, facts={**item.facts, "tests": made})
        return run_program(item, self.reply, limits)


# --- C ---

WHOLE = re.compile(r"\b(?:int|long|short|char|unsigned|signed|size_t|bool|_Bool|u?int\d+_t)\b")
UNSIGNED = re.compile(r"\b(?:unsigned|size_t|uint\d+_t)\b")
BROKEN = re.compile(r"\b(?:float|double)\b")


def c_tests(facts: Mapping[str, Any]) -> str | Verdict:
    """Run a C function on some arguments, and make tests of what it gives; or the verdict that says why not.

    Args:
        facts: ``c`` the source, ``function`` its name, ``calls`` lists of numbers.
    """
    name, source = str(facts["function"]), str(facts["c"])
    head = re.search(rf"([\w\s*]+?)\b{re.escape(name)}\s*\(([^)]*)\)\s*\{{", source)
    if head is None or not re.fullmatch(r"\w+", name):
        return Verdict(False, f"the C source defines no function {name}")
    gives, takes = head[1], head[2]
    if "*" in gives:
        return Verdict(
            False, f"{name} gives {gives.strip()!r}; only functions that give a number can be compared"
        )
    if BROKEN.search(gives):
        form, cast = "%.17g", "double"
    elif UNSIGNED.search(gives):
        form, cast = "%llu", "unsigned long long"
    elif WHOLE.search(gives):
        form, cast = "%lld", "long long"
    else:
        return Verdict(
            False, f"{name} gives {gives.strip()!r}; only functions that give a number can be compared"
        )
    if "*" in takes or "[" in takes:
        return Verdict(False, f"{name} takes more than numbers ({takes.strip()})")
    calls = [[_number(one) for one in call] for call in facts["calls"]]
    lines = "".join(f'  printf("{form}\\n", ({cast}) {name}({", ".join(call)}));\n' for call in calls)
    verdict = run_c(f"#include <stdio.h>\n{source}\nint main(void) {{\n{lines}  return 0;\n}}\n")
    if not verdict.passed:
        return Verdict(False, f"the C source: {verdict.why}")
    results = verdict.printed.split()
    if len(results) != len(calls):
        return Verdict(False, "the C program printed something of its own")
    if cast == "double":
        close = (
            f"assert math.isnan({name}({', '.join(a)}))"
            if "nan" in b
            else f"assert math.isclose({name}({', '.join(a)}), float('{b}'), rel_tol=1e-6, abs_tol=1e-9)"
            for a, b in zip(calls, results, strict=True)
        )
        return "import math\n" + "\n".join(close) + "\n"
    return "".join(f"assert {name}({', '.join(a)}) == {b}\n" for a, b in zip(calls, results, strict=True))


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"{value!r} is no number to call a C function with.", "Give lists of whole or broken numbers."
        )
    return repr(value)
