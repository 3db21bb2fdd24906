"""A request in work: what it has written, what it may still write, and what leaves as the next chunk.

Decides when a completion ends and why. It knows nothing of rows, caches or other requests, and it runs no
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from stockpot.errors import GenerationError
from stockpot.generate.constrain import Constraint
from stockpot.generate.lookup import Lookup
from stockpot.generate.release import TextStream
from stockpot.generate.request import (
    Chunk,
    DamagedModelError,
    FinishReason,
    Request,
    Sampling,
    TokenAlternatives,
)
from stockpot.generate.sampling import penalise_counts, penalise_repetition

__all__ = ["Live", "note_damage", "seed_of"]

MIXER = 0x9E37_79B9_7F4A_7C15  # odd and irregular: neighbouring indices get seeds that share no pattern


def seed_of(sampling: Sampling, index: int) -> int | None:
    """Return the seed of the ``index``-th completion; the first one's is the given seed itself."""
    return None if sampling.seed is None else (sampling.seed + index * MIXER) % 2**63


@dataclass
class Live:
    """One request while it is being answered.

    Attributes:
        number: what ``submit`` returned.
        prompt: the prompt's ids.
        is_source: the prompt is a text of its own, which an encoder reads; what is written does not continue it.
        limit: most ids it may write: max_tokens, or what the context leaves.
        stop_ids: ids that end it.
        constraint: what its JSON schema allows, if it has one.
        deadline: when it is cut, on the engine's clock.
        lookup: guesses its next tokens, if it asked for that.
        failure: why it cannot go on; others go on.
    """

    number: int
    request: Request
    prompt: list[int]
    limit: int
    stop_ids: frozenset[int]
    text: TextStream
    generator: torch.Generator
    constraint: Constraint | None = None
    deadline: float | None = None
    lookup: Lookup | None = None
    is_source: bool = False
    ids: list[int] = field(default_factory=list)
    failure: GenerationError | None = None
    _seen: Tensor | None = None
    _counts: Tensor | None = None

    @classmethod
    def begin(
        cls,
        number: int,
        request: Request,
        prompt: list[int],
        *,
        limit: int,
        stop_ids: frozenset[int],
        text: TextStream,
        constraint: Constraint | None = None,
        now: float = 0.0,
    ) -> Live:
        """Set up a request that has written nothing yet, with its own random numbers."""
        generator = torch.Generator()
        seed = seed_of(request.sampling, request.index)
        generator.seed() if seed is None else generator.manual_seed(seed)
        s = request.sampling
        deadline = None if s.timeout_s is None else now + s.timeout_s
        lookup = None if s.lookup is None else Lookup(prompt, s.lookup)
        return cls(number, request, prompt, limit, stop_ids, text, generator, constraint, deadline, lookup)

    @property
    def sampling(self) -> Sampling:
        """The request's settings."""
        return self.request.sampling

    @property
    def is_adjusted(self) -> bool:
        """Whether :meth:`adjust` would change this step's logits."""
        return len(self.ids) < self.sampling.min_tokens or self._is_steered

    @property
    def is_plain(self) -> bool:
        """Whether nothing is asked for but the likeliest ids, one after another."""
        s = self.sampling
        return s.is_greedy and s.logprobs is None and s.lookup is None and not self._is_steered

    @property
    def _is_steered(self) -> bool:
        """Whether logits of ids are changed as long as it writes."""
        s = self.sampling
        return bool(
            s.logit_bias
            or self.request.allowed
            or self.constraint
            or s.repetition_penalty is not None
            or s.presence_penalty
            or s.frequency_penalty
        )

    def adjust(self, logits: Tensor) -> None:
        """Apply bias, constraint and penalties, in that order and in place, to logits ``(1, vocab)``."""
        s, device = self.sampling, logits.device
        if s.logit_bias:
            ids = torch.tensor(list(s.logit_bias), device=device)
            logits[0, ids] += torch.tensor(list(s.logit_bias.values()), device=device, dtype=logits.dtype)
        enders = self._enders.to(device)
        allowed = self._allowed()
        if allowed is not None:
            allowed = allowed.to(device)
            if not bool(allowed.any()):  # nothing may follow: the answer is complete
                allowed = allowed.index_fill(0, enders, True)
            logits.masked_fill_(~allowed, float("-inf"))
        if len(self.ids) < s.min_tokens:
            logits.index_fill_(1, enders, float("-inf"))
        if s.repetition_penalty is not None:
            penalty = torch.full((1, 1), s.repetition_penalty, device=device)
            logits.copy_(penalise_repetition(logits, self._seen_ids(logits), penalty))
        if s.presence_penalty or s.frequency_penalty:
            presence = torch.full((1, 1), s.presence_penalty or 0.0, device=device)
            frequency = torch.full((1, 1), s.frequency_penalty or 0.0, device=device)
            logits.copy_(penalise_counts(logits, self._written_counts(logits), presence, frequency))

    @cached_property
    def _enders(self) -> Tensor:
        return torch.tensor(sorted(self.stop_ids), dtype=torch.int64)

    def _allowed(self) -> Tensor | None:
        """Say which ids may follow ``(vocab,)``; None: all."""
        given = None if self.request.allowed is None else self.request.allowed(self.ids)
        if self.constraint is None:
            return given
        try:
            allowed = self.constraint.allowed()
        except GenerationError as error:
            self.failure = error
            return given
        return allowed if given is None else given & allowed

    def guess(self) -> list[int]:
        """Guess the ids behind the next one to be run; no more than may still be written."""
        return [] if self.lookup is None else self.lookup.guess(self.limit - len(self.ids) - 1)

    def end(self, reason: FinishReason) -> Chunk:
        """Cut it short; return what was held back."""
        return Chunk(self.number, self.text.finish(), (), reason)

    def accept(
        self, id: int, log_prob: float | None = None, alternatives: TokenAlternatives | None = None
    ) -> Chunk:
        """Take the next id; return what may leave because of it, or why nothing can."""
        self.ids.append(id)
        self._remember(id)
        try:
            if self.failure is not None:
                raise self.failure
            piece, reason = self._write(id)
        except GenerationError as error:
            return Chunk(self.number, "", (id,), "error", error=error)
        return Chunk(
            self.number,
            piece,
            (id,),
            reason,
            () if log_prob is None else (log_prob,),
            () if alternatives is None else (alternatives,),
        )

    def _write(self, id: int) -> tuple[str, FinishReason | None]:
        if id in self.stop_ids:
            return self.text.finish(), "stop"
        piece = self.text.push(id)
        if self.text.is_stopped:
            return piece, "stop"
        if self.constraint is not None:
            self.constraint.push(id)
            if self.constraint.is_complete:
                return piece + self.text.finish(), "stop"
        if len(self.ids) < self.limit:
            return piece, None
        piece += self.text.finish()
        return piece, "stop" if self.text.is_stopped else "length"

    def _seen_ids(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            before = [] if self.is_source else self.prompt
            read = [id for id in before if id < logits.shape[1]]  # a soft prompt's ids lie behind
            self._seen[0, torch.tensor(read + self.ids, dtype=torch.int64, device=logits.device)] = True
        return self._seen

    def _written_counts(self, logits: Tensor) -> Tensor:
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
            for id in self.ids:
                self._counts[0, id] += 1
        return self._counts

    def _remember(self, id: int) -> None:
        if self.lookup is not None:
            self.lookup.push(id)
        if self._seen is not None:
            self._seen[0, id] = True
        if self._counts is not None:
            self._counts[0, id] += 1


def note_damage(logits: Tensor, live: Sequence[Live]) -> None:
    """Let requests fail whose logits ``(requests, vocab)`` are no numbers any more: states grew beyond their type, for example.

    One that is none in a hidden state makes all logits none. A GPU is not asked, since each step would wait for the answer; there
    the first token alone is judged.
    """
    if logits.device.type == "cpu":
        for one, value in zip(live, logits[:, 0].tolist(), strict=True):
            if math.isnan(value):
                one.failure = DamagedModelError()
