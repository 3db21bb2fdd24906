"""How far a model has moved from the one it started as: it answers some prompts, and both say how probable that was.

Draws the same prompts with the same seeds each time, so that figures of different steps compare, and keeps the answers for
people to read. It trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.batch import Batch
from stockpot.data.branching import Tree, branched, tree_of
from stockpot.device import MANY_NUMBERS, give_back_freed_memory
from stockpot.durable import write_json_lines
from stockpot.generate.engine import Engine
from stockpot.generate.request import Completion, Request, Sampling
from stockpot.generate.together import complete
from stockpot.model.adapters import has_adapters, without_adapters, writer_of
from stockpot.model.transformer import Transformer
from stockpot.stages.assemble import as_sources
from stockpot.train.log_probs import label_log_probs
from stockpot.train.rollouts import Asked, Reply, Reward, rated_where_known
from stockpot.weights.store import load_model

__all__ = ["Drift", "DriftConfig", "Reference", "draw", "open_reference", "tree_batches"]

Reference = Callable[[], AbstractContextManager[Transformer]]
"""Opens the reference for the length of a block."""

BATCH_TOKENS = 4096


@contextmanager
def open_reference(bundle: Bundle, named: str | None = None) -> Iterator[Transformer]:
    """Open, in the midst of training, the model that was ``named``, or the one ``bundle`` started as.

    The latter is the model without its adapter, or read once more.
    """
    if named is None and has_adapters(bundle.model):
        with without_adapters(bundle.model):
            yield bundle.model
        return
    source = named or bundle.source
    assert source is not None
    if bundle.model.config.parameters() >= MANY_NUMBERS:
        give_back_freed_memory()  # what the step before has left is in pieces
    yield load_model(source, device=bundle.model.device, dtype="float32")


def tree_batches(trees: Sequence[Tree], device: torch.device) -> Iterator[Batch]:
    """Put trees into batches of about ``BATCH_TOKENS`` tokens, in order."""
    step = max(1, BATCH_TOKENS // max(tree.tokens for tree in trees))
    for at in range(0, len(trees), step):
        yield branched(trees[at : at + step])[0].to(device)


class DriftConfig(Settings):
    """What is looked at, beside what is learned, to see where a model goes."""

    drift_prompts: int = Field(
        16, ge=0, description="at each validation, draw answers to this many prompts; 0: none"
    )
    drift_data: tuple[str, ...] | None = Field(
        None, description="prompts to draw those answers to; none: some of the stage's own"
    )
    gold: str | None = Field(
        None,
        description="rates drawn answers for people to look at, in the form of a reward; nothing learns from it",
    )

    _drift_data = field_validator("drift_data", mode="before")(as_sources)


def draw(
    bundle: Bundle, asked: Sequence[Asked], *, max_tokens: int, seed: int, stop: tuple[str, ...] = ()
) -> list[Completion]:
    """Draw one answer a prompt at temperature 1; the seeds count up from ``seed``."""
    plain = Sampling(max_tokens=max_tokens, temperature=1.0, stop=stop)
    requests = [
        Request(list(one.ids), plain.model_copy(update={"seed": seed + number}))
        for number, one in enumerate(asked)
    ]
    writer = replace(bundle, model=writer_of(bundle.model))
    return complete(Engine(writer, slots=32), requests)


@dataclass
class Drift:
    """Measures drift at validation.

    Args:
        bundle: the model in training, with its text side.
        prompts: what it is asked.
        reference: opens the model it started as.
        max_tokens: longest answer.
        seed: of the answers.
        ratings: name → what rates the answers; ratings that are NaN do not count.
        folder: where answers are written, a file a measurement; None: nowhere.
        measured: how often it has been measured already.
        stop: texts that end an answer, beside the model's own end.
    """

    bundle: Bundle
    prompts: Sequence[Asked]
    reference: Reference
    max_tokens: int = 64
    seed: int = 0
    ratings: Mapping[str, Reward] = field(default_factory=dict)
    folder: Path | None = None
    measured: int = 0
    stop: tuple[str, ...] = ()

    def measure(self) -> dict[str, float]:
        """Answer the prompts and compare.

        Returns:
            ``kl`` (nats an answer: the mean of log(policy / reference) over drawn answers), ``length`` (tokens), and the mean of
            each rating.

        Source: Schulman 2020, "Approximating KL divergence", estimator k1.
        """
        if not self.prompts:
            return {}
        drawn = self.answers(self.bundle)
        own = self.log_probs(self.bundle.model, drawn)
        with self.reference() as model:
            before = self.log_probs(model, drawn)
        found = {
            "kl": float((own - before).mean()),
            "length": float(np.mean([one.tokens for one in drawn])),
        }
        replies = self.replies(drawn)
        for name, reward in self.ratings.items():
            known = rated_where_known(reward, replies)
            if known:
                found[name] = float(np.mean(known))
        self._write(drawn)
        self.measured += 1
        return found

    def replies(self, drawn: Sequence[Completion]) -> list[Reply]:
        """Put answers into the form in which they are rated."""
        return [
            one.reply(
                reply.text.strip() if self.stop else reply.text,
                reply.tokens,
                is_finished=reply.finish_reason == "stop",
            )
            for one, reply in zip(self.prompts, drawn, strict=True)
        ]

    def answers(self, bundle: Bundle) -> list[Completion]:
        """Draw one answer a prompt."""
        return draw(bundle, self.prompts, max_tokens=self.max_tokens, seed=self.seed, stop=self.stop)

    @torch.inference_mode()
    def log_probs(self, model: Transformer, replies: Sequence[Completion]) -> torch.Tensor:
        """Give each answer's log-probability ``(prompts,)`` in float64."""
        found: list[torch.Tensor] = []
        trees = [
            tree_of(np.asarray(one.ids, np.int32), [np.asarray(reply.ids, np.int32)])
            for one, reply in zip(self.prompts, replies, strict=True)
        ]
        was_training = model.training
        model.eval()
        for batch in tree_batches(trees, model.device):
            found.append(label_log_probs(model, batch).per_answer(batch)[0].double().cpu())
        model.train(was_training)
        return torch.cat(found)

    def _write(self, replies: Sequence[Completion]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        decode = self.bundle.tokenizer.decode
        rows = [
            {"prompt": decode(list(one.ids), skip_special=False), "reply": reply.text, "tokens": reply.tokens}
            for one, reply in zip(self.prompts, replies, strict=True)
        ]
        write_json_lines(self.folder / f"{self.measured:04d}.jsonl", rows)
