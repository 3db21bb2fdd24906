"""What is measured while training: sums of losses and metrics between two log lines, and the speed.

Sums stay on the device and are read once a log line. The clock leaves out validation and checkpoints, which are told
separately. It writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stockpot.data.batch import Batch
from stockpot.device import peak_flops
from stockpot.model.config import ModelConfig
from stockpot.train.losses import Loss
from stockpot.train.parallel import Group

__all__ = ["Meter", "batch_flops"]


class Meter:
    """Sums since the last log line, and the clock.

    Args:
        model: asked for the arithmetic of what it is trained on, if its config knows it.
        dtype: number type of its matrix products.
        rate: how many times as fast as those of that type they can be.
        processes: how many share the tokens that are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        processes: int = 1,
        rate: float = 1.0,
    ) -> None:
        self._sums: dict[str, list[Tensor | float]] = {}
        self._model, self._device, self._dtype = model, device, dtype
        self._processes, self._rate, self._trained = processes, rate, _trained_share(model)
        self.tokens, self.flops = 0, 0.0
        self.stall_s = 0.0
        self._earlier_s, self._began = 0.0, time.perf_counter()
        self._since, self._paused_s, self._counted = self._began, 0.0, (0, 0.0)

    def add(self, loss: Loss) -> None:
        """Add one micro-batch's totals and counts."""
        for name, (total, count) in {"loss": (loss.total, loss.count), **loss.metrics}.items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            for index, value in enumerate((total, count)):
                sums[index] = sums[index] + (value.detach() if isinstance(value, Tensor) else value)

    def count(self, batches: Iterable[Any], readers: Group) -> None:
        """Count the tokens of a step and their arithmetic, over all processes that read."""
        own = [(batch.tokens, batch_flops(self._model, batch, trained=self._trained)) for batch in batches]
        both = torch.tensor([sum(one) for one in zip(*own, strict=True)], dtype=torch.float64)
        tokens, flops = readers.sum(both).tolist()
        self.tokens += int(tokens)
        self.flops += flops

    @contextmanager
    def pause(self, *, is_stall: bool = False) -> Iterator[None]:
        """Leave what happens in the block out of the speed; ``is_stall``: tell it as a checkpoint's cost."""
        before = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - before
            self._paused_s += spent
            self.stall_s += spent if is_stall else 0.0

    def read(self, group: Group) -> dict[str, float]:
        """Return the means since the last reading and start again; this waits for the device."""
        names = list(self._sums)
        values = [
            torch.as_tensor(value, dtype=torch.float64) for pair in self._sums.values() for value in pair
        ]
        self._sums = {}
        if not values:
            return {}
        pairs = group.sum(torch.stack([value.to(self._device) for value in values])).view(-1, 2).tolist()
        return {name: total / count for name, (total, count) in zip(names, pairs, strict=True) if count}

    def speed(self) -> dict[str, float]:
        """Return tokens per second since the last call and, where known, their share of this machine's peak."""
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused_s, 1e-9)
        tokens, flops = self.tokens - self._counted[0], self.flops - self._counted[1]
        self._since, self._paused_s, self._counted = now, 0.0, (self.tokens, self.flops)
        rates = {"tokens_per_s": tokens / seconds}
        if flops:
            peak = self._rate * self._processes * peak_flops(self._device, self._dtype)
            rates["mfu"] = flops / seconds / peak
        if self._device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self._since += time.perf_counter() - now  # the first reading measures the peak
        return rates

    def seconds(self) -> float:
        """Return the seconds spent so far, pauses and earlier sittings included."""
        return self._earlier_s + time.perf_counter() - self._began

    def time_left_s(self, done: int, left: int) -> float:
        """Estimate the seconds for ``left`` steps from those this process has ``done``, with all pauses."""
        return (time.perf_counter() - self._began) / max(done, 1) * left

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, the count of tokens and the time spent."""
        sums = {name: [_cpu(value) for value in pair] for name, pair in self._sums.items()}
        counts = {"tokens": self.tokens, "flops": self.flops}
        return {"sums": sums, **counts, "stall_s": self.stall_s, "seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved sums, so that a log line that spans an interruption is the same."""
        self._sums = {
            name: [value.to(self._device) if isinstance(value, Tensor) else value for value in pair]
            for name, pair in state["sums"].items()
        }
        self.tokens, self.flops = self._counted = state["tokens"], state.get("flops", 0.0)
        self.stall_s, self._earlier_s = state["stall_s"], state["seconds"]


def batch_flops(model: nn.Module, batch: Any, *, trained: float = 1.0) -> float:
    """Estimate the arithmetic of training on one batch of texts; 0 where nothing says what it takes.

    `ModelConfig.training_flops` with the lengths that are there and the labels that count: padding costs nothing.
    """
    config, texts = getattr(model, "config", None), getattr(batch, "texts", batch)
    if not (isinstance(config, ModelConfig) and isinstance(texts, Batch)):
        return 0.0
    return config.training_flops(*texts.lengths, texts.counted, trained=trained)


def _trained_share(model: nn.Module) -> float:
    """Tell which share of the weights is trained; adapters and soft prompts are next to none."""
    weights = list(model.parameters())
    trained = sum(one.numel() for one in weights if one.requires_grad)
    config = getattr(model, "config", None)
    if all(one.requires_grad for one in weights) or not isinstance(config, ModelConfig):
        return 1.0
    return min(1.0, trained / config.parameters())


def _cpu(value: Tensor | float) -> Tensor | float:
    return value.cpu() if isinstance(value, Tensor) else value
