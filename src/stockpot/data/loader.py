"""Batches in a seeded order, for any number of processes, that can stop anywhere and go on exactly.

A `Loader` walks epochs of rows (see ``pack``), takes its rank's share and lets the objective make batches of
them. Its state is a place in that walk, a few numbers; nothing else is remembered. It reads no files, except
through the store's memory maps, and never sees a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from stockpot.config import Settings
from stockpot.data.batch import Batch
from stockpot.data.corrupt import causal
from stockpot.data.objective import Objective
from stockpot.data.pack import Alone, Documents, Epoch, Mask, Row, Rows, Stream, fill
from stockpot.data.store import TokenStore
from stockpot.errors import DataError

__all__ = ["FixedBatches", "Loader", "LoaderConfig"]

Packing = Literal["documents", "stream", "alone"]
_MASKS: dict[Packing, Mask] = {"documents": "documents", "alone": "real", "stream": None}
_ROUND = 8  # padded widths are multiples of this


class LoaderConfig(Settings):
    """How rows are made and batched."""

    context: int = Field(256, ge=2, description="tokens of a row")
    micro_batch: int = Field(8, ge=1, description="rows of a batch")
    batch_tokens: int | None = Field(
        None, ge=1, description="positions of a batch instead of its rows; padding included; at least one row"
    )
    pack: Packing = Field(
        "documents",
        description="documents: several in a row, none sees another · "
        "stream: one after another, cut anywhere, all visible, no padding · alone: one in a row, padded",
    )
    seed: int = Field(0, ge=0, description="decides the order, the cuts and the corruption")
    shuffle: bool = Field(True, description="off: the documents' own order")
    epochs: int | None = Field(None, ge=1, description="passes over the data; none: without end")


@dataclass(frozen=True)
class _Place:
    """Where the next batch of all ranks begins."""

    epoch: int = 0
    window: int = 0
    group: int = 0


class Loader:
    """An iterator of batches.

    All ranks walk the same rows; of each step's rows rank r takes its own share, so that together they see
    every row of an epoch once. An epoch's end falls inside a batch where it must.

    Args:
        store: the encoded documents.
        config: rows, batches and order.
        objective: makes batches of rows; None: predict the next token.
        rank: this process, from 0.
        world: how many processes there are.

    Raises:
        DataError: if the store has no row for this configuration.
    """

    def __init__(
        self,
        store: TokenStore,
        config: LoaderConfig,
        objective: Objective | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, {world}), not {rank}")
        self.store, self.config, self.rank, self.world = store, config, rank, world
        self.objective = objective or causal()
        self._pack: Packing = "alone" if self.objective.alone else config.pack
        self._room = self.objective.room(config.context)
        self._place = _Place()
        self._epoch: tuple[int, Epoch] | None = None
        self._window: tuple[int, int, list[list[Row]]] | None = None
        if not self._rows_of(0).windows:
            need = f"a row of {config.context} tokens" if store.tokens else "a batch"
            raise DataError(
                f"The corpus has {store.tokens} tokens in {store.documents} documents: too few for {need}.",
                "Give more text or choose a shorter context.",
            )

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the current place."""
        return self

    def __next__(self) -> Batch:
        """Make this rank's next batch.

        Raises:
            StopIteration: after the last epoch, if there is one.
        """
        share = self._groups_per_batch
        place = self._place
        mine: list[tuple[Row, tuple[int, ...]]] = []
        for index in range(share * self.world):
            place = self._settle(place)
            if self._over(place):
                break
            if index // share == self.rank:
                group = self._groups(place)[place.group]
                seeds = [
                    (self.config.seed, place.epoch, place.window, place.group, row)
                    for row in range(len(group))
                ]
                mine.extend(zip(group, seeds, strict=True))
            place = replace(place, group=place.group + 1)
        self._place = place
        if not mine:
            raise StopIteration
        return self._make([row for row, _ in mine], [seed for _, seed in mine])

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in, from 0."""
        return self._settle(self._place).epoch

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch and what it is a place in; plain numbers and text."""
        place = self._place
        return {"epoch": place.epoch, "window": place.window, "group": place.group, "of": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the same batches, bit for bit, as without the interruption.

        Another number of ranks, or another ``micro_batch`` of packed rows, goes on at the same row.

        Raises:
            DataError: if the data or the settings that decide the rows are others.
        """
        try:
            place = _Place(*(int(state[name]) for name in ("epoch", "window", "group")))
            saved = dict(state["of"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The saved data position cannot be read ({error!r}).", "Start the run anew."
            ) from None
        own = self._identity()
        for name, value in own.items():
            if saved.get(name) != value:
                raise DataError(
                    "The saved data position belongs to other data or settings: "
                    f"{name} was {saved.get(name)}, now it is {value}.",
                    "Resume with the data, tokenizer and settings of the interrupted run, or start anew.",
                )
        if (
            min(place.epoch, place.window, place.group) < 0
            or place.window >= self._rows_of(place.epoch).windows
        ):
            raise DataError("The saved data position lies outside the data.", "Start the run anew.")
        self._place = place

    def _identity(self) -> dict[str, Any]:
        config = self.config
        identity = {
            "data": self.store.fingerprint,
            "context": config.context,
            "pack": self._pack,
            "seed": config.seed,
            "shuffle": config.shuffle,
            "objective": self.objective.name,
        }
        if self._pack == "alone":  # here the size of a batch decides the groups
            identity |= {"micro_batch": config.micro_batch, "batch_tokens": config.batch_tokens}
        return identity

    # --- walking ---

    @property
    def _groups_per_batch(self) -> int:
        if self._pack == "alone":
            return 1
        if self.config.batch_tokens is None:
            return self.config.micro_batch
        return max(1, self.config.batch_tokens // self.config.context)

    def _settle(self, place: _Place) -> _Place:
        """Step over the ends of windows and epochs; the place returned has a group, or is over."""
        while not self._over(place):
            windows = self._rows_of(place.epoch).windows
            if place.window >= windows:
                place = _Place(place.epoch + 1)
            elif place.group >= len(self._groups(place)):
                place = _Place(place.epoch, place.window + 1)
            else:
                break
        return place

    def _over(self, place: _Place) -> bool:
        return self.config.epochs is not None and place.epoch >= self.config.epochs

    def _rows_of(self, epoch: int) -> Epoch:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._plan(epoch)
        return self._epoch[1]

    def _groups(self, place: _Place) -> list[list[Row]]:
        if self._window is None or self._window[:2] != (place.epoch, place.window):
            self._window = place.epoch, place.window, self._rows_of(place.epoch).groups(place.window)
        return self._window[2]

    def _plan(self, epoch: int) -> Epoch:
        config = self.config
        seed = (config.seed, epoch) if config.shuffle else None
        if self._pack == "stream":
            return Stream(self.store.lengths, self._room, seed)
        if self._pack == "documents":
            return Documents(self.store.lengths, self._room, seed)
        return Alone(
            self.store.lengths, self._room, seed, rows=config.micro_batch, tokens=config.batch_tokens
        )

    def _make(self, rows: list[Row], seeds: list[tuple[int, ...]]) -> Batch:
        width = self._room
        if self._pack == "alone":
            longest = max(stop - start for row in rows for _, start, stop in row)
            width = min(width, -(-longest // _ROUND) * _ROUND)
        ids, labels, documents = fill(self.store, rows, width, self.objective.pad_id)
        return self.objective.make(Rows(ids, labels, documents, rows, seeds, self.store, _MASKS[self._pack]))


class FixedBatches:
    """The same finite batches each time it is walked: validation data.

    Order and corruption are always the same, so that figures of different steps compare; where only a part of
    the data is used, it is drawn at random, once. Ranks share the rows; the last batch may be smaller and a
    rank may get none.

    Args:
        store: the held-out documents.
        config: as in training; order and epochs do not matter.
        objective: as in training.
        rank: this process.
        world: how many processes.
        max_batches: stop after as many of this rank's batches.
    """

    def __init__(
        self,
        store: TokenStore,
        config: LoaderConfig,
        objective: Objective | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        max_batches: int | None = None,
    ) -> None:
        self._store, self._objective, self._rank, self._world = store, objective, rank, world
        self._config = config.model_copy(update={"shuffle": max_batches is not None, "epochs": 1})
        self._max = max_batches
        self._loader()  # refuse early

    def __iter__(self) -> Iterator[Batch]:
        """Begin from the start."""
        return islice(self._loader(), self._max)

    def _loader(self) -> Loader:
        return Loader(self._store, self._config, self._objective, rank=self._rank, world=self._world)
