"""Writing on a GPU: a step is recorded once, as a CUDA graph, and played from then on.

One token is hundreds of small kernels, and starting each from Python takes longer than running it. A recording starts
all of them at once. It holds for a number of rows and of positions to look at, so both are rounded up: a row that nobody owns
writes to its spare slot. A recording costs some dozens of steps, so one for more rows or positions serves until it has stood in
that often. What a step computes is the model's own forward pass; on a CPU nothing is recorded.

The next step can be begun before anyone has looked at the ids that the last one gave, so that the card works while their text
is made (:class:`Begun`).

Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stockpot.generate.rows import Rows
from stockpot.model.cache import KVCache
from stockpot.model.transformer import Transformer

__all__ = ["Begun", "Recorder"]

POSITIONS = 256  # a recording looks at a multiple of so many positions
WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)  # numbers of rows that are recorded
PATIENCE = 64  # steps for which a larger recording stands in for one that is not there


class Recorder:
    """Plays recorded steps of one model over the rows of one cache.

    Args:
        model: the model that writes.
        compiles: let torch compile what our kernels leave to it first: fewer, larger kernels, after half a minute of waiting.
    """

    def __init__(self, model: Transformer, *, compiles: bool = False) -> None:
        self._model, self._compiles = model, compiles
        self.is_on = (
            type(model) is Transformer and model.config.shape == "decoder" and model.device.type == "cuda"
        )
        self._kept: dict[tuple[int, int], _Step] = {}
        self._missed: Counter[tuple[int, int]] = Counter()
        self._pool: Any = None
        self._fetched: Tensor | None = None
        self._belongs: tuple[object, ...] = ()

    def refresh(self) -> None:
        """Forget what was recorded of weights that have moved since, or under adapters that no longer act."""
        if not self.is_on:
            return
        places: list[object] = [param.data_ptr() for param in self._model.parameters()]
        places += [module.is_on for module in self._model.modules() if hasattr(module, "is_on")]
        if self._belongs != (found := tuple(places)):
            self._forget()
            self._belongs = found

    def step(self, ids: Tensor, rows: Rows) -> Tensor | None:
        """Write one token in each of the first rows: ids ``(rows, 1)`` to logits ``(rows, vocab)``.

        None: this step cannot be recorded, so it is for the model itself. The caller tells ``rows`` that they grew.
        """
        if not self.is_on or torch.is_autocast_enabled("cuda"):
            return None
        cache, count = rows.cache, ids.shape[0]
        width = next((width for width in WIDTHS if width >= count), count)
        width = width if width <= cache.batch else count
        needed = max(rows.lengths[:count]) + 1
        extent = min(-(-needed // POSITIONS) * POSITIONS, cache.capacity)
        if any(one.cache is not cache for one in self._kept.values()):
            self._forget()
        return self._step_for(cache, width, extent).play(ids)

    def _step_for(self, cache: KVCache, width: int, extent: int) -> _Step:
        """Find a recording for so many rows and positions, or make it."""
        if (found := self._kept.get((width, extent))) is not None:
            return found
        larger = [one for one in self._kept if one[0] >= width and one[1] >= extent]
        self._missed[width, extent] += 1
        if larger and self._missed[width, extent] <= PATIENCE:
            return self._kept[min(larger)]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        step = _Step(self._model, cache, width, extent, compiles=self._compiles)
        step.record(self._pool)
        self._kept[width, extent] = step
        return step

    def fetch(self, ids: Tensor) -> Callable[[], list[int]]:
        """Begin to bring ids ``(rows,)`` from the device; the call of what is returned waits for them, and for nothing later.

        One fetch at a time.
        """
        if not ids.is_cuda:
            return ids.tolist
        if self._fetched is None or self._fetched.shape[0] < ids.shape[0]:
            self._fetched = torch.empty(ids.shape[0], dtype=ids.dtype, pin_memory=True)
        here = self._fetched[: ids.shape[0]]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        here.copy_(ids, non_blocking=True)
        event.record()

        def arrived() -> list[int]:
            event.synchronize()
            found: list[int] = here.tolist()
            return found

        return arrived

    def _forget(self) -> None:
        """Drop all recordings, and with the last of them the memory they shared."""
        self._kept, self._pool, self._missed = {}, None, Counter()


class Begun:
    """A step that was begun: what it will say of each row, wherever the row has moved since."""

    def __init__(self, logits: Tensor, count: int) -> None:
        self._logits, self._places = logits, list(range(count))

    @property
    def count(self) -> int:
        """Rows it was begun for and that are still alive; they are the first ones."""
        return len(self._places)

    @property
    def logits(self) -> Tensor:
        """The logits ``(count, vocab)`` in the order of rows."""
        if self._places == list(range(self.count)):
            return self._logits[: self.count]
        return self._logits[torch.tensor(self._places, device=self._logits.device)]

    def free(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self._places.pop()
        if row < self.count:
            self._places[row] = last


class _Step:
    """One recording: a token for ``width`` rows that look at ``extent`` positions."""

    def __init__(
        self, model: Transformer, cache: KVCache, width: int, extent: int, *, compiles: bool
    ) -> None:
        self.cache = cache
        self._model, self._extent = model, extent
        self._part = cache.part(0, width)
        self._part.is_recorded, self._part.compiles = True, compiles
        self._ids = torch.zeros(width, 1, dtype=torch.int64, device=model.device)
        self._real = torch.ones(width, 1, dtype=torch.bool, device=model.device)
        self._owned = width
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor

    def record(self, pool: Any) -> None:
        """Record; what the rows hold stays as it is, since the slot behind a row's tokens is written anew by its next one."""
        lengths = self._part.lengths.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is made at first use, once and for all, must not be recorded
            for _ in range(2):
                self.run()
                self._part.lengths.copy_(lengths)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = self.run()
        self._part.lengths.copy_(lengths)

    def play(self, ids: Tensor) -> Tensor:
        """Write ids ``(rows, 1)``; the logits are overwritten by the next step."""
        assert self._graph is not None
        self.put(ids)
        self._graph.replay()
        return self._logits[: ids.shape[0]]

    def put(self, ids: Tensor) -> None:
        """Lay ids ``(rows, 1)`` where a recording reads them; rows behind them belong to nobody."""
        count = ids.shape[0]
        self._ids[:count].copy_(ids)
        if count != self._owned:
            self._real[:count], self._real[count:] = True, False
            self._owned = count

    def run(self) -> Tensor:
        """Compute what is recorded: logits ``(width, vocab)``."""
        self._part.extent, self._part.is_even = self._extent - 1, False
        logits: Tensor = self._model(self._ids, attention_mask=self._real, cache=self._part, last=1).logits
        return logits[:, -1]
