"""Ask a model the items of a task, once each: what was answered before is found again by its content.

Items of like length are asked together, in portions of a bounded number of tokens; after each portion the answers are on the
disk, so that a killed run goes on where it was. What an answer is worth is decided in `scoring`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stockpot import durable
from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling, Score
from stockpot.judge.requests import Asked
from stockpot.judge.tasks import Scorer

__all__ = ["Cache", "Outcome", "ask_all", "model_fingerprint"]

PORTION_TOKENS = 16_384  # of all rows that are asked before the answers are written down
WRITTEN = 32  # written answers, likewise
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What a model did with one item, before anything is judged.

    Attributes:
        log_probs: of each completion, nats.
        tokens: of each completion.
        without: log-probability of each completion without the question.
        is_greedy: whether the first completion is what greedy decoding writes.
        replies: what it wrote.
    """

    log_probs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    without: tuple[float, ...] = ()
    is_greedy: bool = False
    replies: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: dict[str, Any]) -> Outcome:
        """Make one of what JSON holds."""
        return cls(
            tuple(map(float, value["log_probs"])),
            tuple(map(int, value["tokens"])),
            tuple(map(float, value["without"])),
            bool(value["is_greedy"]),
            tuple(map(str, value["replies"])),
        )


def model_fingerprint(bundle: Bundle) -> str:
    """Hash all that decides a model's answers: weights as they are in memory, sizes, tokenizer and template."""
    digest = hashlib.sha256()
    config = bundle.model.config
    parts = [repr(config), bundle.tokenizer.fingerprint, bundle.template.source if bundle.template else ""]
    digest.update(json.dumps([*parts, list(bundle.soft)]).encode())
    for name, value in _weights(bundle.model):
        digest.update(name.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers, and the tensors that quantised layers keep as plain attributes."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in sorted({**module._parameters, **module._buffers, **vars(module)}.items()):
            if isinstance(value, torch.Tensor) and value.layout == torch.strided and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}", value


@dataclass
class Cache:
    """Answers by content, one JSON object a line; None as the file keeps them in memory only.

    The key holds the model, the scorer's way of asking, and the ids asked: a changed prompt, tokenizer or weight is
    another question.
    """

    path: Path | None
    model: str
    found: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
                self.found[value.pop("key")] = Outcome.read(value)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a killed run may leave half a line; that item is asked again

    def key(self, asked: Asked, scorer: Scorer, seed: int) -> str:
        """Name what is asked."""
        parts: list[Any] = [self.model, asked.pairs, asked.without, asked.prompt]
        if asked.prompt is not None:
            parts += [scorer.until, scorer.max_tokens, scorer.samples, scorer.temperature, seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def keep(self, key: str, outcome: Outcome) -> None:
        """Write an answer down."""
        self.found[key] = outcome
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            durable.append(self.path, json.dumps({"key": key, **asdict(outcome)}, ensure_ascii=True) + "\n")


@dataclass
class _Clock:
    """Tells how far the asking is and how long the rest will take, by the tokens of what is left."""

    progress: Progress | None
    total: int
    work: int
    done: int = 0
    worked: int = 0
    began: float = field(default_factory=time.monotonic)

    def tick(self, items: int, work: int) -> None:
        self.done += items
        self.worked += work
        if self.progress is None:
            return
        spent = time.monotonic() - self.began
        left = spent / max(1, self.worked) * (self.work - self.worked)
        self.progress({"kind": "step", "step": self.done, "steps": self.total, "time_left_s": left})


def ask_all(
    engine: Engine,
    asked: Sequence[Asked],
    scorer: Scorer,
    cache: Cache,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Ask all items that no one has the answer to yet; return all answers, in the order of the items."""
    keys = [cache.key(one, scorer, seed) for one in asked]
    fresh = {key: one for key, one in zip(keys, asked, strict=True) if key not in cache.found}
    order = sorted(fresh, key=lambda key: -fresh[key].length)
    clock = _Clock(
        progress, len(asked), sum(_work(fresh[key], scorer) for key in order), len(asked) - len(fresh)
    )
    for portion in _portions([key for key in order if fresh[key].prompt is None], fresh):
        for key, outcome in zip(portion, _score(engine, [fresh[key] for key in portion]), strict=True):
            cache.keep(key, outcome)
        clock.tick(len(portion), sum(_work(fresh[key], scorer) for key in portion))
    written: dict[str, tuple[str, ...]] = {}
    unwritten = {key: fresh[key] for key in order if fresh[key].prompt is not None}
    for count, (key, replies) in enumerate(_write(engine, unwritten, scorer, seed), 1):
        written[key] = replies
        if len(written) < WRITTEN and count < len(unwritten):
            continue
        # Only now, since the engine still holds the prompts that it has just read.
        for one, outcome in zip(written, _score(engine, [fresh[key] for key in written]), strict=True):
            cache.keep(one, replace(outcome, replies=written[one]))
        clock.tick(len(written), sum(_work(fresh[key], scorer) for key in written))
        written = {}
    return [cache.found[key] for key in keys]


def _work(one: Asked, scorer: Scorer) -> int:
    scoring = sum(len(a) + len(b) for a, b in (*one.pairs, *one.without))
    return scoring + (0 if one.prompt is None else len(one.prompt) + 8 * scorer.max_tokens * scorer.samples)


def _portions(order: Sequence[str], fresh: dict[str, Asked]) -> Iterator[list[str]]:
    portion: list[str] = []
    tokens = 0
    for key in order:
        size = sum(len(a) + len(b) for a, b in (*fresh[key].pairs, *fresh[key].without))
        if portion and tokens + size > PORTION_TOKENS:
            yield portion
            portion, tokens = [], 0
        portion.append(key)
        tokens += size
    if portion:
        yield portion


def _score(engine: Engine, portion: Sequence[Asked]) -> list[Outcome]:
    pairs = [pair for one in portion for pair in (*one.pairs, *one.without)]
    scores = iter(engine.score(pairs) if pairs else [])
    outcomes = []
    for one in portion:
        found: list[Score] = [next(scores) for _ in one.pairs]
        bare = [next(scores) for _ in one.without]
        outcomes.append(
            Outcome(
                tuple(score.log_prob for score in found),
                tuple(score.tokens for score in found),
                tuple(score.log_prob for score in bare),
                bool(found) and found[0].is_greedy,
            )
        )
    return outcomes


def _write(
    engine: Engine, wanted: dict[str, Asked], scorer: Scorer, seed: int
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Let the engine write all answers, as many at once as it has slots; yield each as it ends."""
    owners: dict[int, tuple[str, int]] = {}
    texts: dict[str, dict[int, str]] = {key: {} for key in wanted}
    parts: dict[int, list[str]] = {}
    for key, one in wanted.items():
        assert one.prompt is not None
        for sample in range(scorer.samples):
            sampling = Sampling(
                temperature=scorer.temperature,
                max_tokens=scorer.max_tokens,
                stop=scorer.until,
                seed=seed if scorer.temperature else None,
                n=scorer.samples,
            )
            number = engine.submit(Request(list(one.prompt), sampling, sample))
            owners[number], parts[number] = (key, sample), []
    try:
        while owners:
            for chunk in engine.step():
                if chunk.request not in owners:
                    continue
                parts[chunk.request].append(chunk.text)
                if chunk.finish_reason is None:
                    continue
                key, sample = owners.pop(chunk.request)
                texts[key][sample] = "".join(parts.pop(chunk.request))
                if len(texts[key]) == scorer.samples:
                    yield key, tuple(texts[key][place] for place in range(scorer.samples))
    finally:
        for number in owners:
            engine.cancel(number)
