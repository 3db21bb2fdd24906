"""How far a model has moved from the one it started as: it answers some prompts, and both say how probable that was.

Draws the same prompts with the same seeds each time, so that figures of different steps compare, and keeps the answers for
people to read. It trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stockpot.bundle import Bundle
from stockpot.data.branching import branched, tree_of
from stockpot.durable import write_atomically
from stockpot.generate.engine import Engine
from stockpot.generate.request import Completion, Request, Sampling
from stockpot.generate.together import complete
from stockpot.model.transformer import Transformer
from stockpot.train.log_probs import label_log_probs

__all__ = ["Drift", "Reference"]

Reference = Callable[[], AbstractContextManager[Transformer]]
"""Opens the reference for the length of a block."""

BATCH_TOKENS = 4096


@dataclass
class Drift:
    """Measures drift at validation.

    Args:
        bundle: the model in training, with its text side.
        prompts: what it is asked, as ids.
        reference: opens the model it started as.
        max_tokens: longest answer.
        seed: of the answers.
        folder: where answers are written, a file a measurement; None: nowhere.
    """

    bundle: Bundle
    prompts: Sequence[Sequence[int]]
    reference: Reference
    max_tokens: int = 64
    seed: int = 0
    folder: Path | None = None
    measured: int = 0

    def measure(self) -> dict[str, float]:
        """Answer the prompts and compare.

        Returns:
            ``kl`` (nats an answer: the mean of log(policy / reference) over drawn answers) and ``length`` (tokens).

        Source: Schulman 2020, "Approximating KL divergence", estimator k1.
        """
        if not self.prompts:
            return {}
        replies = self.answers(self.bundle)
        lengths = float(np.mean([reply.tokens for reply in replies]))
        own = self.log_probs(self.bundle.model, replies)
        with self.reference() as model:
            before = self.log_probs(model, replies)
        self._write(replies)
        self.measured += 1
        return {"kl": float((own - before).mean()), "length": lengths}

    def answers(self, bundle: Bundle) -> list[Completion]:
        """Draw one answer a prompt."""
        plain = Sampling(max_tokens=self.max_tokens, temperature=1.0)
        requests = [
            Request(list(ids), plain.model_copy(update={"seed": self.seed + number}))
            for number, ids in enumerate(self.prompts)
        ]
        return complete(Engine(bundle, slots=32), requests)

    @torch.inference_mode()
    def log_probs(self, model: Transformer, replies: Sequence[Completion]) -> torch.Tensor:
        """Give each answer's log-probability ``(prompts,)`` in float64."""
        found: list[torch.Tensor] = []
        trees = [
            tree_of(np.asarray(ids, np.int32), [np.asarray(reply.ids, np.int32)])
            for ids, reply in zip(self.prompts, replies, strict=True)
        ]
        step = max(1, BATCH_TOKENS // max(tree.tokens for tree in trees))
        was_training = model.training
        model.eval()
        for at in range(0, len(trees), step):
            batch = branched(trees[at : at + step])[0].to(model.device)
            found.append(label_log_probs(model, batch).per_answer(batch)[0].double().cpu())
        model.train(was_training)
        return torch.cat(found)

    def _write(self, replies: Sequence[Completion]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        decode = self.bundle.tokenizer.decode
        rows = [
            {"prompt": decode(list(ids), skip_special=False), "reply": reply.text, "tokens": reply.tokens}
            for ids, reply in zip(self.prompts, replies, strict=True)
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.folder / f"{self.measured:04d}.jsonl", text)
