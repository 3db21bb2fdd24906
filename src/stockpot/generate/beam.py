"""Beam search: keep the most probable beginnings, side by side, and give the best whole answers.

Decides which beginnings live on and when no better answer can come. It shares the model's cache with nobody.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.inputs import seen_both_ways
from stockpot.generate.live import Live
from stockpot.generate.release import TextStream
from stockpot.generate.request import DamagedModelError, Request, Sampling
from stockpot.model.cache import KVCache

__all__ = ["Hypothesis", "beam_search"]


@dataclass(frozen=True, order=True)
class Hypothesis:
    """One answer found.

    Attributes:
        score: log-probability / length ** length_penalty.
        ids: the completion, the id that ended it included.
        is_ended: whether the model ended it (otherwise the limit did).
    """

    score: float
    ids: tuple[int, ...]
    is_ended: bool


def beam_search(bundle: Bundle, prompt: list[int], sampling: Sampling, limit: int) -> list[Hypothesis]:
    """Return the best ``n`` answers of up to ``limit`` tokens, best first.

    The search ends when no live beginning could beat the worst of the answers kept, judged at its present
    length. Temperature does not change a ranking of whole answers and is ignored.

    Raises:
        GenerationError: if there are fewer answers than that, or the logits are no numbers.

    Source: Wu et al. 2016, arXiv:1609.08144, §7 (with length ** penalty in place of eq. 14's lp).
    """
    beams = sampling.beams or 1
    search = _Search(bundle, prompt, sampling, beams)
    logits, cache = search.read()
    if not bool(logits.amax(-1).isfinite().all()):
        raise DamagedModelError
    for length in range(1, limit + 1):
        search.extend(logits, cache, length)
        if length == limit or search.is_settled(length):
            break
        logits = search.advance(cache)
    search.close()
    if len(search.ended) < sampling.n:
        raise GenerationError(
            f"Beam search found {len(search.ended)} answers, not {sampling.n}; there are no more.",
            "Lower n, or allow more ids.",
        )
    return heapq.nlargest(sampling.n, search.ended)


class _Search:
    """The state of one search: live beginnings, their log-probabilities, and the answers that have ended."""

    def __init__(self, bundle: Bundle, prompt: list[int], sampling: Sampling, beams: int) -> None:
        self.bundle, self.prompt, self.sampling, self.beams = bundle, prompt, sampling, beams
        self.stop_ids = bundle.stop_ids
        self.ended: list[Hypothesis] = []
        self.live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.origins: list[int] = [0]

    def read(self) -> tuple[Tensor, KVCache]:
        """Read the prompt in every row; return the logits behind it ``(beams, vocab)`` and the cache."""
        model, device = self.bundle.model, self.bundle.model.device
        room = min(self.bundle.context, len(self.prompt) + self.sampling.max_tokens)
        source = torch.tensor([self.prompt] * self.beams, device=device)
        if model.config.encoder is None:
            cache = model.new_cache(self.beams, room)
            both = seen_both_ways(self.bundle, source)
            return model(source, segments=both, cache=cache, last=1).logits[:, -1], cache
        cache = model.new_cache(self.beams, min(self.bundle.context, 1 + self.sampling.max_tokens))
        first = torch.full((self.beams, 1), self.bundle.start_id, device=device)
        return model(first, source=source, cache=cache, last=1).logits[:, -1], cache

    def extend(self, logits: Tensor, cache: KVCache, length: int) -> None:
        """Lengthen every live beginning by one id; keep the best, and set ended ones aside."""
        log_probs = self._adjusted(logits[: len(self.live)].float().log_softmax(-1))
        totals = log_probs.double() + torch.tensor(
            [[total] for total, _ in self.live], device=logits.device, dtype=torch.float64
        )
        # Enough candidates that the live ones can be refilled even if each beam's best id ends it.
        wanted = min(self.beams * (1 + max(1, len(self.stop_ids))), totals.numel())
        best = totals.flatten().topk(wanted)
        live: list[tuple[float, tuple[int, ...]]] = []
        origins: list[int] = []
        for rank, (total, flat) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, id = divmod(flat, totals.shape[1])
            if total == float("-inf") or len(live) == self.beams:
                break
            ids = (*self.live[row][1], id)
            if id in self.stop_ids:
                if rank < self.beams:  # an end counts only where it beats the beginnings that live on
                    self._keep(Hypothesis(self._score(total, length), ids, is_ended=True))
                continue
            live.append((total, ids))
            origins.append(row)
        self.live, self.origins = live, origins

    def advance(self, cache: KVCache) -> Tensor:
        """Run the newest id of every live beginning; return the next logits ``(live, vocab)``."""
        spare = self.beams - len(self.live)  # fewer beginnings than beams: the first stands in for the rest
        rows = torch.tensor(self.origins + self.origins[:1] * spare, device=self.bundle.model.device)
        cache.reorder(rows)
        newest = [[ids[-1]] for _, ids in self.live]
        ids = torch.tensor(newest + newest[:1] * spare, device=self.bundle.model.device)
        logits: Tensor = self.bundle.model(ids, cache=cache, last=1).logits[:, -1]
        return logits

    def is_settled(self, length: int) -> bool:
        """Whether nothing that lives can still beat the answers kept."""
        if not self.live:
            return True
        if len(self.ended) < self.beams:
            return False
        return self.ended[0].score >= self._score(self.live[0][0], length)

    def close(self) -> None:
        """Count beginnings cut off by the limit as answers."""
        if len(self.ended) < self.sampling.n or not self.is_settled(
            max(1, len(self.live[0][1]) if self.live else 1)
        ):
            for total, ids in self.live:
                self._keep(Hypothesis(self._score(total, len(ids)), ids, is_ended=False))

    def _keep(self, found: Hypothesis) -> None:
        heapq.heappush(self.ended, found)
        if len(self.ended) > self.beams:
            heapq.heappop(self.ended)

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self.sampling.length_penalty)

    def _adjusted(self, log_probs: Tensor) -> Tensor:
        """Apply bias and penalties to each beginning's row ``(live, vocab)``."""
        for row, (_, ids) in enumerate(self.live):
            request = Request(self.prompt, self.sampling)
            text = TextStream(self.bundle.tokenizer.decode)  # of no account here
            one = Live.begin(0, request, self.prompt, limit=1, stop_ids=self.stop_ids, text=text)
            one.is_source = self.bundle.model.config.shape == "encoder_decoder"
            one.ids = list(ids)
            if not one.is_adjusted:
                break
            one.adjust(log_probs[row : row + 1])
        return log_probs
