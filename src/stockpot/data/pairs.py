"""Comparisons as ids: two answers behind one prompt, split by prompt, batched in a seeded order.

A `Pairs` holds encoded comparisons; a `PairLoader` walks them for ever and can stop anywhere and go on exactly. Held-out
comparisons never share a prompt with those that are trained on. It reads no file and sees no model.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stockpot.data.batch import PreferenceBatch
from stockpot.data.branching import Answer, Tree, branched, tree_of
from stockpot.data.encode import Encoded, encode_preference
from stockpot.data.objective import pad_of
from stockpot.data.records import PreferenceRecord, as_messages
from stockpot.errors import DataError

if TYPE_CHECKING:
    from stockpot.text.chat import ChatTemplate
    from stockpot.text.tokenizer import Tokenizer

__all__ = ["FixedPairs", "PairLoader", "Pairs", "encode_pairs", "prompt_key"]

_log = logging.getLogger(__name__)


def prompt_key(record: PreferenceRecord) -> str:
    """Give what two comparisons share exactly when they ask the same."""
    said = [f"{message.role}\x1f{message.content}" for message in as_messages(record.prompt)]
    return hashlib.sha256("\x1e".join(said).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Encoded comparisons.

    Args:
        trees: prompt with the chosen and the rejected answer.
        chance: how probable it is that the chosen answer is better ``(pairs,)``.
        margin: by how much ``(pairs,)``; NaN where nobody said.
        prompts: a key for the prompt of each pair.
        pad_id: fills rows.
        fingerprint: two with one fingerprint are equal.
        reference: log-probabilities of the answers under the reference ``(pairs, 2)``, once they are known.
        overlong: comparisons left out because they exceed the context.
    """

    trees: Sequence[Tree] = field(repr=False)
    chance: NDArray[np.float32] = field(repr=False)
    margin: NDArray[np.float32] = field(repr=False)
    prompts: Sequence[str] = field(repr=False)
    pad_id: int
    fingerprint: str
    reference: NDArray[np.float32] | None = field(default=None, repr=False)
    overlong: int = 0

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def tokens(self) -> int:
        """Tokens of all comparisons, each prompt counted once a pair."""
        return sum(tree.tokens for tree in self.trees)

    def only(self, kept: Sequence[int] | NDArray[np.integer], mark: str) -> Pairs:
        """Give some of the pairs; ``mark`` tells the choice apart from others in the fingerprint."""
        index = np.asarray(kept, np.int64)
        return replace(
            self,
            trees=[self.trees[i] for i in index],
            chance=self.chance[index],
            margin=self.margin[index],
            prompts=[self.prompts[i] for i in index],
            reference=None if self.reference is None else self.reference[index],
            fingerprint=hashlib.sha256(f"{self.fingerprint}{mark}".encode()).hexdigest(),
        )

    def split(self, share: float, *, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Hold out about ``share`` of the prompts, each with all of its comparisons: (training, held out).

        Raises:
            DataError: if there are not two prompts.
        """
        prompts = sorted(set(self.prompts))
        if len(prompts) < 2:
            raise DataError("All comparisons ask the same, so none can be held out.", "Give more prompts.")
        count = min(len(prompts) - 1, max(1, round(len(prompts) * share)))
        order = np.random.default_rng(seed).permutation(len(prompts))
        held = {prompts[i] for i in order[:count]}
        inside = np.array([prompt in held for prompt in self.prompts])
        mark = f"{share}-{seed}"
        return self.only(np.flatnonzero(~inside), f"-{mark}"), self.only(np.flatnonzero(inside), f"+{mark}")

    def without_prompts_of(self, other: Pairs) -> Pairs:
        """Leave out the comparisons whose prompt the other ones ask, too."""
        theirs = set(other.prompts)
        kept = [index for index, prompt in enumerate(self.prompts) if prompt not in theirs]
        return self if len(kept) == len(self) else self.only(kept, f"-{other.fingerprint}")

    def batch(self, indices: Sequence[int]) -> PreferenceBatch:
        """Lay some pairs out as a batch."""
        texts, _ = branched([self.trees[i] for i in indices], self.pad_id)
        index = np.asarray(indices, np.int64)
        reference = None if self.reference is None else torch.from_numpy(self.reference[index].reshape(-1))
        margin = torch.from_numpy(np.nan_to_num(self.margin[index], nan=0.0))
        return PreferenceBatch(texts, torch.from_numpy(self.chance[index]), margin, reference)


def encode_pairs(
    records: Iterable[PreferenceRecord],
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    *,
    context: int,
) -> Pairs:
    """Encode comparisons.

    A pair of which either side exceeds ``context`` is left out: cutting an answer would change what was compared.

    Raises:
        DataError: if no pair is left, or a prompt or an answer is empty.
    """
    trees, chance, margin, prompts = [], [], [], []
    overlong: list[str] = []
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for record in records:
        tree = _tree(record, *encode_preference(record, tokenizer, template))
        if len(tree.trunk) + max(len(answer.ids) for answer in tree.answers) > context:
            overlong.append(record.where)
            continue
        trees.append(tree)
        chance.append(0.5 if record.tie else 1.0)
        margin.append(np.nan if record.margin is None else record.margin)
        prompts.append(prompt_key(record))
        for part in (tree.trunk, *(answer.ids for answer in tree.answers)):
            digest.update(len(part).to_bytes(4, "little") + part.tobytes())
    digest.update(np.asarray([chance, margin], "<f8").tobytes())
    if overlong:
        text = "%d comparisons were left out: longer than %d tokens (%s …)"
        _log.warning(text, len(overlong), context, overlong[0])
    if not trees:
        more = f" All {len(overlong)} are longer than {context} tokens." if overlong else ""
        raise DataError(f"There is no comparison to learn from.{more}", "Look at the data's files.")
    return Pairs(
        trees,
        np.array(chance, np.float32),
        np.array(margin, np.float32),
        prompts,
        pad_of(tokenizer),
        digest.hexdigest(),
        overlong=len(overlong),
    )


def _tree(record: PreferenceRecord, chosen: Encoded, rejected: Encoded) -> Tree:
    """Find what both sides share and put them behind it."""
    starts = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        counted = np.flatnonzero(side.counted)
        if not len(counted) or counted[0] == 0:
            what = "answer" if not len(counted) else "prompt"
            raise DataError(
                f'{record.where}: the {what} of "{name}" has no token.', "Leave such records out."
            )
        starts.append(int(counted[0]))
    first, second = chosen.ids[: starts[0]], rejected.ids[: starts[1]]
    if not np.array_equal(first, second):  # a template that writes prompts differently for different answers
        return Tree(np.zeros(0, np.int32), (Answer(*_trimmed(chosen)), Answer(*_trimmed(rejected))))
    sides = [_trimmed(side) for side in (chosen, rejected)]
    start = starts[0]
    return tree_of(first, [ids[start:] for ids, _ in sides], [counted[start:] for _, counted in sides])


def _trimmed(side: Encoded) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Cut what a template writes after the answer."""
    stop = int(np.flatnonzero(side.counted)[-1]) + 1
    return side.ids[:stop], side.counted[:stop]


@dataclass(frozen=True)
class _Place:
    epoch: int = 0
    at: int = 0


class PairLoader:
    """Batches of pairs without end, in a new order each epoch.

    Args:
        pairs: what to walk.
        tokens: real tokens of a batch, at most; at least one pair.
        seed: decides the order.
        rank: this process, from 0; process r takes the r-th of each ``world`` batches.
        world: how many processes there are.
    """

    def __init__(self, pairs: Pairs, *, tokens: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.pairs, self._tokens, self._seed = pairs, tokens, seed
        self._rank, self._world = rank, world
        self._place = _Place()
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> Iterator[PreferenceBatch]:
        """Go on from the current place."""
        return self

    def __next__(self) -> PreferenceBatch:
        """Make this process's next batch; it ends with its epoch at the latest."""
        dealt = [self._deal() for _ in range(self._world)]
        return self.pairs.batch(dealt[self._rank])

    def _deal(self) -> list[int]:
        place = self._place
        order = self._epoch(place.epoch)
        chosen = _take(self.pairs, order, place.at, self._tokens)
        after = place.at + len(chosen)
        self._place = _Place(place.epoch + 1) if after >= len(order) else _Place(place.epoch, after)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch of all processes; plain numbers and text."""
        return {"epoch": self._place.epoch, "at": self._place.at, "of": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            DataError: if the comparisons or settings are others.
        """
        if state.get("of") != self._identity():
            raise DataError(
                "The saved data position belongs to other comparisons or settings.",
                "Resume with the data, tokenizer and settings of the interrupted run, or start anew.",
            )
        self._place = _Place(int(state["epoch"]), int(state["at"]))

    def _identity(self) -> dict[str, Any]:
        return {"data": self.pairs.fingerprint, "tokens": self._tokens, "seed": self._seed}

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(len(self.pairs))
        return self._order[1]


class FixedPairs:
    """The same batches each time it is walked: all pairs, in their own order.

    Args:
        pairs: what to walk.
        tokens: real tokens of a batch, at most; at least one pair.
    """

    def __init__(self, pairs: Pairs, *, tokens: int) -> None:
        self.pairs, self._tokens = pairs, tokens

    def __iter__(self) -> Iterator[PreferenceBatch]:
        """Begin from the start."""
        order = np.arange(len(self.pairs))
        at = 0
        while at < len(order):
            chosen = _take(self.pairs, order, at, self._tokens)
            at += len(chosen)
            yield self.pairs.batch(chosen)


def _take(pairs: Pairs, order: NDArray[np.int64], at: int, tokens: int) -> list[int]:
    """Take pairs from ``at`` on until the next one would be too much."""
    chosen: list[int] = []
    taken = 0
    for index in order[at:].tolist():
        taken += pairs.trees[index].tokens
        if chosen and taken > tokens:
            break
        chosen.append(index)
    return chosen
