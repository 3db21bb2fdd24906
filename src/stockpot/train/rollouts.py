"""What a policy writes, rated, as an iterator of batches in front of the same loop.

A phase draws answers to some prompts with the engine, has them rated, compares the ratings with what was expected, and deals
the answers out in minibatches for some epochs; the next phase begins with the policy as it is then. All that a
phase drew is part of the state, since it could not be drawn again from a policy that has moved on. It takes no step
and reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot.bundle import Bundle
from stockpot.data.batch import IGNORED, RolloutBatch
from stockpot.data.branching import Span, Tree, branched, tree_of
from stockpot.device import World
from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Completion, Request, Sampling
from stockpot.generate.together import complete
from stockpot.model.adapters import merged_copy, writer_of
from stockpot.model.transformer import Transformer
from stockpot.text.chat import Message
from stockpot.train.log_probs import hidden_as_trained, label_log_probs
from stockpot.train.losses import Loss, Metrics
from stockpot.train.parallel import Group
from stockpot.train.policy import (
    ActorCritic,
    Baseline,
    PolicyConfig,
    gae,
    group_advantages,
    kl_k1,
    kl_k3,
    leave_one_out,
    policy_loss,
    whiten,
)
from stockpot.train.ratings import Reply, Reward, rated, rated_where_known
from stockpot.train.rollouts_vllm import VllmConfig

__all__ = ["Asked", "Reply", "Reward", "RolloutConfig", "Rollouts", "rated", "rated_where_known"]


class RolloutConfig(PolicyConfig):
    """How answers are drawn, compared and learned from."""

    baseline: Baseline = Field(
        "value",
        description="what a reward is compared with: value (PPO) · group (GRPO) · leave-one-out (RLOO)",
    )
    prompts: int = Field(32, ge=1, description="prompts of a phase")
    samples: int = Field(1, ge=1, description="answers to each of them")
    max_tokens: int = Field(64, ge=1, description="longest answer")
    epochs: int = Field(2, ge=1, description="passes over a phase's answers")
    minibatches: int = Field(2, ge=1, description="optimiser steps of a pass")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="bias against variance of the advantages")
    whiten: bool = Field(True, description="value: give advantages mean 0 and spread 1")
    scale: bool = Field(True, description="group: divide by the spread of the prompt's rewards")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="of the distance in the reward: k1 · k3")
    target_kl: float | None = Field(
        None, gt=0, description="nats an answer; the price of distance is adapted to hold it; none: fixed"
    )
    stop_kl: float | None = Field(
        0.05,
        gt=0,
        description="nats a token from where the phase began, at which its rest is skipped; none: never",
    )
    max_kl: float | None = Field(
        100.0, gt=0, description="nats an answer from the reference at which the run is stopped; none: never"
    )
    unfinished_penalty: float = Field(0.0, ge=0, description="taken off the reward of an answer that was cut")
    engine: Literal["stockpot", "vllm"] = Field("stockpot", description="who writes: stockpot · vllm (extra)")
    vllm: VllmConfig = Field(default_factory=VllmConfig, description="engine vllm: memory and speed")

    @model_validator(mode="after")
    def _is_possible(self) -> RolloutConfig:
        if self.baseline != "value" and self.samples < 2:
            raise ValueError(
                f"baseline {self.baseline!r} compares answers to one prompt: samples must be at least 2"
            )
        return self


@dataclass(frozen=True)
class Asked:
    """A prompt, as ids and as people see it.

    Attributes:
        ids: what the policy reads.
        text: what is asked: the last message of a conversation.
        answer: the known answer, if there is one.
        messages: the conversation so far, a system message included; empty where there is none.
    """

    ids: tuple[int, ...]
    text: str
    answer: str | None = None
    messages: tuple[Message, ...] = ()

    def reply(self, text: str, tokens: int, *, is_finished: bool) -> Reply:
        """Put an answer to this prompt into the form in which it is rated."""
        return Reply(self.text, text, self.answer, tokens, is_finished, self.messages)


@dataclass
class _Phase:
    """What a phase drew; per answer, tensors as long as the answer."""

    prompts: list[list[int]]
    answers: list[list[int]]
    old: list[Tensor]
    advantages: list[Tensor]
    reference: list[Tensor]
    values: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] = field(default_factory=list)


class Rollouts:
    """An endless iterator of `RolloutBatch`; ``loss`` is the loss to give the loop with it.

    Args:
        bundle: the policy with its text side.
        model: what is trained: the policy, or the policy with a value head.
        asked: prompts, which are walked in a seeded order.
        reward: rates replies.
        config: everything else.
        reference: opens the reference for the length of a block.
        tokens: real tokens of a micro-batch.
        seed: of the order and of the answers.
        gold: a second rating, which is only looked at.
        autocast: the number type of training, around every forward pass of its own.
        note: receives a phase's replies with their rewards.
        writer: answers requests with the policy as it is; None: our engine does.
        group: the processes; each draws answers to its share of a phase's prompts, and all learn from all of them.
        reads: this process's place among those that learn from different answers; None: among all.
    """

    reads_model = True

    def __init__(  # noqa: PLR0913 - the parts of a rollout
        self,
        bundle: Bundle,
        model: ActorCritic | Transformer,
        asked: Sequence[Asked],
        reward: Reward,
        config: RolloutConfig,
        *,
        reference: Callable[[], AbstractContextManager[Transformer]],
        tokens: int = 4096,
        seed: int = 0,
        gold: Reward | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        note: Callable[[int, Sequence[Reply], Sequence[float]], None] | None = None,
        writer: Callable[[Sequence[Request]], list[Completion]] | None = None,
        group: Group | None = None,
        reads: World | None = None,
    ) -> None:
        self.group = group or Group()
        self.reads = reads or self.group.place
        if config.prompts // config.minibatches < self.group.place.world and not self.group.is_alone:
            raise ConfigError(
                f"{config.prompts} prompts in {config.minibatches} minibatches are less than one for each of "
                f"{self.group.place.world} processes.",
                "Raise prompts, or lower minibatches.",
            )
        if not asked:
            raise DataError("There is no prompt to answer.", "Give prompts.")
        self.bundle, self.model, self.asked, self.reward, self.config = bundle, model, asked, reward, config
        self.reference, self.tokens, self.seed, self.gold = reference, tokens, seed, gold
        self.autocast, self.note, self.writer = autocast, note, writer or self._engine_writes
        self.phases, self.kl_coef, self.kl_step = 0, config.kl_coef, 0.0
        self._phase: _Phase | None = None
        self._cursor = 0
        self._pending: dict[str, tuple[float, float]] = {}
        self._plan: list[tuple[list[int], bool]] | None = None
        self._moved: list[tuple[Tensor | float, Tensor | float]] = []  # by micro-batch of the step at hand

    def __iter__(self) -> Iterator[RolloutBatch]:
        """Go on from the current place."""
        return self

    def __next__(self) -> RolloutBatch:
        """Give the next micro-batch, drawing new answers where a phase ends.

        Raises:
            TrainError: if a reward is no number, or the policy has collapsed.
        """
        self._end_step()
        if self._phase is not None and self._stops_early():
            self._phase = None
        if self._phase is None or self._cursor >= len(self._planned()):
            self._phase, self._cursor, self._plan, self.kl_step = self._draw(), 0, None, 0.0
        groups, ends = self._planned()[self._cursor]
        self._cursor += 1
        return self._batch(self._phase, groups, ends)

    def loss(self, model: nn.Module, batch: RolloutBatch) -> Loss:
        """Compute the policy's loss; the first of a phase carries the phase's metrics."""
        assert isinstance(model, ActorCritic | Transformer)
        if model.training:
            model.eval()  # with dropout a policy that has not moved would differ from itself
        in_loss = self.config.kl_coef if self.config.baseline != "value" else 0.0
        found = policy_loss(model, batch, self.config, self.kl_coef if in_loss else 0.0)
        self._moved.append(found.metrics["kl_step"])
        pending: Metrics = dict(self._pending)
        self._pending = {}
        return Loss(found.total, found.count, found.metrics | pending)

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch: plain values and tensors, with all that the phase drew."""
        self._end_step()
        return {
            "phases": self.phases,
            "cursor": self._cursor,
            "steps": self._steps_taken(),
            "kl_coef": self.kl_coef,
            "kl_step": self.kl_step,
            "pending": {name: list(pair) for name, pair in self._pending.items()},
            "phase": None if self._phase is None else dict(vars(self._phase)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, in the midst of a phase, too."""
        self.phases, self._cursor = int(state["phases"]), int(state["cursor"])
        self.kl_coef, self.kl_step = float(state["kl_coef"]), float(state["kl_step"])
        self._pending = {name: (pair[0], pair[1]) for name, pair in state["pending"].items()}
        self._phase = None if state["phase"] is None else _Phase(**state["phase"])
        self._plan = None
        # another number of processes has other micro-batches
        if self._phase is not None and "steps" in state:
            ends = [index + 1 for index, (_, ends) in enumerate(self._planned()) if ends]
            self._cursor = [0, *ends][int(state["steps"])]

    def _steps_taken(self) -> int:
        """Count the steps of the phase that are done."""
        return 0 if self._phase is None else sum(ends for _, ends in self._planned()[: self._cursor])

    # --- a phase ---

    def _draw(self) -> _Phase:
        every = self._choose()
        mine = np.array_split(np.arange(len(every)), self.group.place.world)[self.group.place.rank]
        asked = [every[i] for i in mine]
        completions = self._write(asked, first=int(mine[0]))
        samples = self.config.samples
        replies = [
            asked[i // samples].reply(one.text, one.tokens, is_finished=one.finish_reason == "stop")
            for i, one in enumerate(completions)
        ]
        ratings = rated(self.reward, replies)
        phase = _Phase([list(one.ids) for one in asked], [list(one.ids) for one in completions], [], [], [])
        self._measure(phase)
        own = float(sum(one.sum() for one in phase.old))
        known = [] if self.gold is None else rated_where_known(self.gold, replies)
        phase, replies, ratings, known = self._joined(phase, replies, ratings, known)
        distances = [kl_k1(old, ref).sum() for old, ref in zip(phase.old, phase.reference, strict=True)]
        kl = float(torch.stack(distances).mean())
        self._refuse_collapse(replies, kl)
        penalty = self.config.unfinished_penalty
        scores = [r - (0.0 if one.is_finished else penalty) for r, one in zip(ratings, replies, strict=True)]
        self._compare(phase, torch.tensor(scores, dtype=torch.float32))
        self._tell(replies, ratings, known, kl)
        if self.config.baseline != "value":
            alike = [len(set(scores[i : i + samples])) == 1 for i in range(0, len(scores), samples)]
            self._pending["alike"] = (float(sum(alike)), float(len(alike)))
        if said := [value for one in completions for value in one.log_probs]:  # by who wrote, where it tells
            self._pending["writer_kl"] = (sum(said) - own, float(len(said)))
        self.phases += 1
        return phase

    def _joined(
        self, phase: _Phase, replies: list[Reply], ratings: list[float], known: list[float]
    ) -> tuple[_Phase, list[Reply], list[float], list[float]]:
        """Put together what all processes drew."""
        found = self.group.gather_objects((phase, replies, ratings, known))
        together = _Phase(**{name: [x for one in found for x in vars(one[0])[name]] for name in vars(phase)})
        every = [reply for one in found for reply in one[1]]
        return together, every, [x for one in found for x in one[2]], [x for one in found for x in one[3]]

    def _choose(self) -> list[Asked]:
        """Take the next prompts of a seeded walk over all of them."""
        count, size = self.config.prompts, len(self.asked)
        places = range(self.phases * count, (self.phases + 1) * count)
        orders: dict[int, np.ndarray] = {}
        for epoch in {place // size for place in places}:
            orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(size)
        return [self.asked[int(orders[place // size][place % size])] for place in places]

    def _write(self, asked: Sequence[Asked], first: int) -> list[Completion]:
        """Draw answers to prompts, the first of which is number ``first`` of the phase."""
        sampling = Sampling(max_tokens=self.config.max_tokens, temperature=1.0)
        seeds = np.random.default_rng((self.seed, self.phases, 1)).integers(
            0, 2**62, self.config.prompts * self.config.samples
        )[first * self.config.samples :]
        requests = [
            Request(
                list(one.ids), sampling.model_copy(update={"seed": int(seeds[i * self.config.samples + j])})
            )
            for i, one in enumerate(asked)
            for j in range(self.config.samples)
        ]
        return self.writer(requests)

    def _engine_writes(self, requests: Sequence[Request]) -> list[Completion]:
        with self.autocast():
            kind = self.bundle.model.device.type
            if not torch.is_autocast_enabled(kind):
                writer = replace(self.bundle, model=writer_of(self.bundle.model))
                return complete(Engine(writer, slots=64), requests)
            dtype = torch.get_autocast_dtype(kind)
        # Autocast would round every weight anew at every token; a rounded copy serves the whole phase.
        writer = replace(self.bundle, model=merged_copy(self.bundle.model, dtype))
        return complete(Engine(writer, slots=64), requests)

    @torch.no_grad()
    def _measure(self, phase: _Phase) -> None:
        """Give every token its log-probability under policy and reference, and its value."""
        policy = self.bundle.model
        was_training = self.model.training
        self.model.eval()
        samples, count = self.config.samples, len(phase.prompts)
        runs = list(self._micro(phase, list(range(count))))
        for groups in runs:
            batch, spans = branched([self._tree(phase, group) for group in groups])
            batch = batch.to(policy.device)
            with self.autocast():
                hidden = hidden_as_trained(policy, batch)
                found = label_log_probs(policy, batch, hidden=hidden)
                values = self.model.value(hidden).float() if isinstance(self.model, ActorCritic) else None
            grid = found.spread(found.log_probs, batch.labels).cpu()
            phase.old += [grid[s.row, s.start : s.stop - 1] for s in spans]
            if values is not None:
                phase.values += [values.cpu()[s.row, s.start : s.stop - 1] for s in spans]
        with self.reference() as reference, self.autocast():
            for groups in runs:
                batch, spans = branched([self._tree(phase, group) for group in groups])
                batch = batch.to(reference.device)
                found = label_log_probs(reference, batch, hidden=hidden_as_trained(reference, batch))
                grid = found.spread(found.log_probs, batch.labels).cpu()
                phase.reference += [grid[s.row, s.start : s.stop - 1] for s in spans]
        assert len(phase.old) == len(phase.reference) == count * samples
        self.model.train(was_training)

    def _compare(self, phase: _Phase, scores: Tensor) -> None:
        """Turn rewards into advantages."""
        lengths = [len(one) for one in phase.old]
        if self.config.baseline != "value":
            grouped = scores.view(-1, self.config.samples)
            better = (
                group_advantages(grouped, scale=self.config.scale)
                if self.config.baseline == "group"
                else leave_one_out(grouped)
            ).reshape(-1)
            phase.advantages = [torch.full((n,), float(a)) for n, a in zip(lengths, better, strict=True)]
            return
        estimate = kl_k1 if self.config.kl_estimator == "k1" else kl_k3
        rewards, values = torch.zeros(len(lengths), max(lengths)), torch.zeros(len(lengths), max(lengths))
        for row, (old, reference, value) in enumerate(
            zip(phase.old, phase.reference, phase.values, strict=True)
        ):
            rewards[row, : len(old)] = -self.kl_coef * estimate(old, reference)
            rewards[row, len(old) - 1] += scores[row]
            values[row, : len(old)] = value
        advantages, returns = gae(rewards, values, gamma=self.config.gamma, lam=self.config.gae_lambda)
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        if self.config.whiten:
            advantages[real] = whiten(advantages[real])
        phase.advantages = [row[:n].clone() for row, n in zip(advantages, lengths, strict=True)]
        phase.returns = [row[:n].clone() for row, n in zip(returns, lengths, strict=True)]

    def _tell(
        self, replies: Sequence[Reply], ratings: Sequence[float], known: Sequence[float], kl: float
    ) -> None:
        """Keep the phase's figures for the next loss, and adapt the price of distance."""
        count = float(len(replies))
        self._pending = {
            "reward": (float(sum(ratings)), count),
            "kl": (kl * count, count),
            "length": (float(sum(one.tokens for one in replies)), count),
            "finished": (float(sum(one.is_finished for one in replies)), count),
            "kl_coef": (self.kl_coef, 1.0),
        }
        if known:
            self._pending["gold"] = (float(sum(known)), float(len(known)))
        if self.note is not None and self.group.is_first:
            self.note(self.phases, replies, ratings)
        if self.config.target_kl is not None:
            # Ziegler et al. 2019, arXiv:1909.08593, §2.2: proportional, bounded, slow.
            error = min(max(kl / self.config.target_kl - 1, -0.2), 0.2)
            self.kl_coef *= 1 + 0.5 * error

    def _refuse_collapse(self, replies: Sequence[Reply], kl: float) -> None:
        todo = "Raise kl_coef, lower loop.lr, or look at samples/ for how the reward is tricked."
        if self.config.max_kl is not None and kl > self.config.max_kl:
            raise TrainError(f"The policy has collapsed: {kl:.0f} nats an answer from the reference.", todo)
        texts, prompts = {one.text for one in replies}, {one.prompt for one in replies}
        if len(prompts) >= 8 and len(texts) == 1:
            told = f"it answers {len(prompts)} different prompts with {replies[0].text[:60]!r}"
            raise TrainError(f"The policy has collapsed: {told}.", todo)

    # --- minibatches ---

    def _planned(self) -> list[tuple[list[int], bool]]:
        """Say which prompts each micro-batch of the phase holds, and where steps end."""
        assert self._phase is not None
        if self._plan is None:
            count = len(self._phase.prompts)
            self._plan = []
            for epoch in range(self.config.epochs):
                order = np.random.default_rng((self.seed, self.phases, 2, epoch)).permutation(count)
                for part in np.array_split(order, min(self.config.minibatches, count)):
                    micro = self._share(self._phase, part)
                    self._plan += [(groups, index == len(micro) - 1) for index, groups in enumerate(micro)]
        return self._plan

    def _share(self, phase: _Phase, part: np.ndarray) -> list[list[int]]:
        """Cut this process's share of a step into as many micro-batches as every other process's."""
        place = self.reads
        shares = [one.tolist() for one in np.array_split(part, place.world)]
        counts = [len(list(self._micro(phase, share))) for share in shares]
        count = min(max(counts), min(len(share) for share in shares))
        if counts[place.rank] == count:
            return list(self._micro(phase, shares[place.rank]))
        return [one.tolist() for one in np.array_split(shares[place.rank], count)]

    def _micro(self, phase: _Phase, groups: Sequence[int]) -> Iterator[list[int]]:
        taken: list[int] = []
        size = 0
        for group in groups:
            tokens = self._tree(phase, group).tokens
            if taken and size + tokens > self.tokens:
                yield taken
                taken, size = [], 0
            taken.append(group)
            size += tokens
        if taken:
            yield taken

    def _tree(self, phase: _Phase, group: int) -> Tree:
        samples = self.config.samples
        answers = phase.answers[group * samples : (group + 1) * samples]
        return tree_of(np.asarray(phase.prompts[group], np.int32), [np.asarray(a, np.int32) for a in answers])

    def _batch(self, phase: _Phase, groups: Sequence[int], ends: bool) -> RolloutBatch:
        texts, spans = branched([self._tree(phase, group) for group in groups])
        samples = self.config.samples
        chosen = [group * samples + j for group in groups for j in range(samples)]
        assert int((texts.labels != IGNORED).sum()) == sum(len(phase.old[i]) for i in chosen)

        def grid(values: Sequence[Tensor]) -> Tensor:
            out = torch.zeros(texts.ids.shape)
            span: Span
            for span, index in zip(spans, chosen, strict=True):
                out[span.row, span.start : span.stop - 1] = values[index]
            return out

        has_values, in_loss = bool(phase.values), self.config.baseline != "value" and self.config.kl_coef > 0
        return RolloutBatch(
            texts,
            grid(phase.old),
            grid(phase.advantages),
            returns=grid(phase.returns) if has_values else None,
            old_values=grid(phase.values) if has_values else None,
            reference_log_probs=grid(phase.reference) if in_loss else None,
            ends_step=ends,
        )

    def _end_step(self) -> None:
        """Note how far the policy has moved in the step that ended; the one wait for the device."""
        if self._moved and self._planned()[self._cursor - 1][1]:
            totals, counts = zip(*self._moved, strict=True)
            sums = torch.tensor([sum(map(float, one)) for one in (totals, counts)], dtype=torch.float64)
            total, count = self.group.sum(sums).tolist()
            self.kl_step = total / count
            self._moved = []

    def _stops_early(self) -> bool:
        """Whether the policy has moved so far that the phase's answers say little about it."""
        at_start = self._cursor == 0 or not self._planned()[self._cursor - 1][1]
        return not at_start and self.config.stop_kl is not None and self.kl_step > self.config.stop_kl
