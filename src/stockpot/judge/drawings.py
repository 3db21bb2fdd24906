"""Is in a picture what its caption says? A small classifier reads drawn scenes; its own error stands beside every score.

The classifier is a convolutional network that learns painted scenes of all pairs of colour and shape, with exact labels. A
scene's facts are put into a form that does not depend on which thing the caption names first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stockpot.judge.metrics import Estimate, proportion
from stockpot.village import Village
from stockpot.village.scenes import COLOURS, SHAPES, Facts, Scene, paint

__all__ = ["ATTRIBUTES", "SceneReader", "judge_drawings", "train_scene_reader"]

LAYOUTS = ("one", "two", "three", "four", "beside", "above")
ATTRIBUTES = {"layout": 6, "colour": 6, "shape": 4, "second colour": 6, "second shape": 4}
"""Attribute → how many values it has: how many there are or how two stand; the left or upper thing; the other one."""

READER_SEED = 1_000  # of the village whose scenes the classifier learns: no other is drawn from it
FINE_NOISE = 0.04  # added to its pictures, so that it does not depend on clean edges


def labels_of(facts: Facts) -> list[int]:
    """Turn a scene's facts into numbers: layout, then colour and shape of the left or upper thing, then of the other one."""
    things = facts.seen.things
    if facts.relation is None:
        layout, things = facts.count - 1, things * 2
    else:
        layout = LAYOUTS.index("beside" if facts.seen.relation == "left of" else "above")
    colours = list(COLOURS)
    return [layout, *(n for colour, shape in things for n in (colours.index(colour), SHAPES.index(shape)))]


class SceneReader(nn.Module):
    """Pictures of 32 × 32 in, scores of every attribute's values out."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.middle = nn.Linear(96 * 16, 128)
        self.out = nn.Linear(128, sum(ATTRIBUTES.values()))

    def forward(self, pixels: Tensor) -> Tensor:
        """Score pictures ``(batch, 32, 32, 3)`` uint8: ``(batch, 26)``."""
        x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.training:
            x = x + FINE_NOISE * torch.randn_like(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.gelu(norm(layer(x)))
        scores: Tensor = self.out(F.gelu(self.middle(x.flatten(1))))
        return scores

    def read(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give the likeliest value of each attribute, ``(batch, attributes)``."""
        self.eval()
        with torch.inference_mode():
            parts = self(torch.from_numpy(pixels)).split(list(ATTRIBUTES.values()), dim=1)
        return torch.stack([part.argmax(1) for part in parts], 1).numpy()


@dataclass(frozen=True)
class Reading:
    """Scores of pictures: each attribute's share right, and all right together."""

    attributes: dict[str, Estimate]
    all_right: Estimate


def train_scene_reader(
    *, steps: int = 500, batch: int = 64, scenes: int = 6_000, seed: int = 0
) -> SceneReader:
    """Train the classifier on painted scenes; half of them show pairs that other training never shows."""
    torch.manual_seed(seed)
    drawn = list(Village(READER_SEED).scenes("val", scenes))
    pixels = torch.from_numpy(np.stack([paint(scene) for scene in drawn]))
    labels = torch.tensor([labels_of(scene.facts) for scene in drawn])
    reader = SceneReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    dice = torch.Generator().manual_seed(seed)
    reader.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        chosen = torch.randint(0, scenes, (batch,), generator=dice)
        parts = reader(pixels[chosen]).split(list(ATTRIBUTES.values()), dim=1)
        loss = sum(F.cross_entropy(part, labels[chosen, at]) for at, part in enumerate(parts))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return reader.eval()


def judge_drawings(reader: SceneReader, pixels: NDArray[np.uint8], scenes: Sequence[Scene]) -> Reading:
    """Compare what the classifier reads in pictures with what their captions say.

    The second thing's colour and shape count only where there are two.
    """
    found = reader.read(pixels)
    true = np.array([labels_of(scene.facts) for scene in scenes])
    right = found == true
    two = np.array([scene.facts.relation is not None for scene in scenes])
    attributes = {}
    for at, (name, values) in enumerate(ATTRIBUTES.items()):
        counted = right[two, at] if name.startswith("second") else right[:, at]
        if len(counted):
            attributes[name] = proportion(int(counted.sum()), len(counted), chance=1 / values)
    whole = np.where(two, right.all(1), right[:, :3].all(1))
    return Reading(attributes, proportion(int(whole.sum()), len(whole)))
