"""Scenes: coloured shapes on a light ground, with captions, questions and exact truth.

A scene holds one shape, several equal ones, or two that stand in a relation. Some pairs of colour and shape are never
shown in training, so that a model that names them has put them together itself. Pictures are drawn with numpy from a scene's
numbers alone: the same scene gives the same pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stockpot.village.dice import Dice, Side, side_of

__all__ = [
    "COLOURS",
    "COUNTS",
    "HELD_OUT_PAIRS",
    "RELATIONS",
    "SHAPES",
    "Facts",
    "Scene",
    "draw_scene",
    "paint",
    "read_caption",
    "scene_questions",
]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "blue": (38, 84, 190),
    "green": (34, 139, 60),
    "yellow": (236, 190, 30),
    "purple": (128, 50, 150),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
COUNTS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITES = {"right of": "left of", "below": "above"}
HELD_OUT_PAIRS = frozenset(
    {("red", "triangle"), ("blue", "cross"), ("green", "circle"), ("yellow", "square")}
)
"""Pairs of colour and shape that training never shows: one of each shape, four of 24."""

FINE = 4  # each pixel is the mean of FINE × FINE points
Kind = Literal["one", "several", "two"]
Thing = tuple[str, str]  # colour, shape


@dataclass(frozen=True)
class Facts:
    """What is in a scene, and all that a caption says.

    Attributes:
        things: one, or two in the order in which the caption names them, each (colour, shape).
        count: how many of the first there are.
        relation: where the first of two stands to the second; None for one.
    """

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None

    @property
    def caption(self) -> str:
        """Say it."""
        (colour, shape), *rest = self.things
        if rest:
            second, kind = rest[0]
            return f"a {colour} {shape} {self.relation} a {second} {kind}"
        return (
            f"a {colour} {shape}" if self.count == 1 else f"{COUNTS[self.count - 1]} {colour} {_many(shape)}"
        )

    @property
    def seen(self) -> Facts:
        """What is to be seen, whichever of two things is named first: the left or the upper one comes first."""
        if self.relation not in OPPOSITES:
            return self
        return Facts(self.things[::-1], self.count, OPPOSITES[self.relation])


@dataclass(frozen=True)
class Scene:
    """A scene that can be painted.

    Attributes:
        facts: what is in it.
        places: of each shape: centre x, centre y, half its width; shares of the picture's width.
        ground: the colour behind.
    """

    facts: Facts
    places: tuple[tuple[float, float, float], ...]
    ground: tuple[int, int, int]

    @property
    def is_held_out(self) -> bool:
        """Whether it shows a pair of colour and shape that training never shows."""
        return any(thing in HELD_OUT_PAIRS for thing in self.facts.things)


def draw_scene(dice: Dice, side: Side) -> Scene:
    """Draw a scene; on the side ``"train"`` without held-out pairs, on ``"val"`` half of them with one.

    Scenes of one shape, of several and of two are as 1 : 1 : 2. No scene's numbers are on both sides.
    """
    wants_new = side == "val" and dice.chance(0.5)
    while True:
        scene = _draw(dice)
        if side_of(repr(scene.places)) == side and scene.is_held_out == wants_new:
            return scene


def _draw(dice: Dice) -> Scene:
    kind = dice.pick(("one", "several", "two", "two"))
    light = dice.between(225, 255)
    ground = (light, light, dice.between(215, 255))
    first = _thing(dice)
    if kind == "two":
        second = _thing(dice)
        while second == first:
            second = _thing(dice)
        relation = dice.pick(RELATIONS)
        return Scene(Facts((first, second), 1, relation), _two_places(dice, relation), ground)
    count = 1 if kind == "one" else dice.between(2, 4)
    return Scene(Facts((first,), count), _several_places(dice, count), ground)


def _thing(dice: Dice) -> Thing:
    return dice.pick(tuple(COLOURS)), dice.pick(SHAPES)


def _two_places(dice: Dice, relation: str) -> tuple[tuple[float, float, float], ...]:
    """Two shapes well apart along the relation's axis, and nearly level across it."""
    near, far = 0.22 + 0.08 * dice.random(), 0.70 + 0.08 * dice.random()
    across = 0.3 + 0.4 * dice.random()
    other = across + 0.16 * (dice.random() - 0.5)
    low, high = (near, across, _size(dice)), (far, other, _size(dice))
    if relation in ("right of", "below"):
        low, high = high, low
    if relation in ("above", "below"):
        low, high = (low[1], low[0], low[2]), (high[1], high[0], high[2])
    return (low, high)


def _several_places(dice: Dice, count: int) -> tuple[tuple[float, float, float], ...]:
    """Shapes in different quarters of the picture; one alone stands anywhere."""
    if count == 1:
        return ((0.25 + 0.5 * dice.random(), 0.25 + 0.5 * dice.random(), 0.14 + 0.08 * dice.random()),)
    quarters = dice.sample(((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)), count)
    size = _size(dice)
    return tuple(
        (x + 0.12 * (dice.random() - 0.5), y + 0.12 * (dice.random() - 0.5), size) for x, y in quarters
    )


def _size(dice: Dice) -> float:
    return 0.12 + 0.05 * dice.random()


# --- painting ---


def paint(scene: Scene, size: int = 32) -> NDArray[np.uint8]:
    """Paint a scene, ``(size, size, 3)`` uint8, with smooth edges."""
    points = (np.arange(size * FINE, dtype=np.float64) + 0.5) / (size * FINE)
    x, y = points[None, :], points[:, None]
    picture = np.empty((size, size, 3), dtype=np.float64)
    picture[:] = scene.ground
    for number, (cx, cy, half) in enumerate(scene.places):
        colour, shape = scene.facts.things[min(number, len(scene.facts.things) - 1)]
        covered = _covers(shape, (x - cx) / half, (y - cy) / half)
        share = covered.reshape(size, FINE, size, FINE).mean(axis=(1, 3))[..., None]
        picture = picture * (1 - share) + np.array(COLOURS[colour], dtype=np.float64) * share
    return picture.round().astype(np.uint8)


def _covers(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which points a shape of half-width 1 around 0 covers; y grows downwards."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return (abs(x) <= 0.88) & (abs(y) <= 0.88)
    if shape == "triangle":
        return (y <= 0.9) & (y >= -1 + 2 * abs(x) - 0.05)
    return (abs(x) <= 1) & (abs(y) <= 1) & ((abs(x) <= 0.33) | (abs(y) <= 0.33))


# --- what texts say ---

_ONE = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_TWO = re.compile(rf"\ba {_ONE} ({'|'.join(RELATIONS)}) a {_ONE}\b")
_SINGLE = re.compile(rf"\ban? {_ONE}\b")
_SEVERAL = re.compile(
    rf"\b({'|'.join(COUNTS[1:])}) ({'|'.join(COLOURS)}) (circles|squares|triangles|crosses)\b"
)


def read_caption(text: str) -> Facts | None:
    """Read what a caption says, at its beginning; None if it says nothing of the kind."""
    text = text.strip()
    if found := _TWO.match(text):
        return Facts(((found[1], found[2]), (found[4], found[5])), 1, found[3])
    if found := _SEVERAL.match(text):
        shape = next(shape for shape in SHAPES if _many(shape) == found[3])
        return Facts(((found[2], shape),), COUNTS.index(found[1]) + 1)
    if found := _SINGLE.match(text):
        return Facts(((found[1], found[2]),))
    return None


def scene_questions(scene: Scene) -> list[tuple[str, str, tuple[str, ...]]]:
    """Ask about a scene: (question, answer, choices); every answer follows from the picture alone."""
    facts = scene.facts
    colour, shape = facts.things[0]
    if facts.relation is not None:
        other = facts.things[1]
        asked = [(f"Where is the {colour} {shape}?", f"{facts.relation} the {other[0]} {other[1]}")]
        choices = [tuple(f"{one} the {other[0]} {other[1]}" for one in RELATIONS)]
        if shape != other[1]:
            asked.append((f"What colour is the {other[1]}?", other[0]))
            choices.append(tuple(COLOURS))
        return [(q, a, c) for (q, a), c in zip(asked, choices, strict=True)]
    them = shape if facts.count == 1 else _many(shape)
    be = "is" if facts.count == 1 else "are"
    return [
        (f"What colour {be} the {them}?", colour, tuple(COLOURS)),
        ("How many shapes are there?", COUNTS[facts.count - 1], COUNTS),
        ("What shape is it?" if facts.count == 1 else "What shape are they?", shape, SHAPES),
    ]


def _many(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"
