"""Row 28: an encoder's states steer what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import trained
from stockpot.judge.drawings import judge_drawings, train_scene_reader
from stockpot.stages.diffusion import DrawConfig, draw, train_draw
from stockpot.village import Village

PICTURES, STEPS_A_MINUTE = 60, 100


def measure(material: Material) -> Sequence[Finding]:
    """Train the same small diffusion model with nothing, one-hot words or the base model's states to steer it."""
    reader = train_scene_reader()
    right: dict[str, list[float]] = {}
    for cook, seed in zip(material.cooks, material.seeds, strict=False):
        scenes = list(Village(seed).scenes("val", PICTURES))
        for name, source in {
            "states": str(cook / "pretrain"),
            "words": "words",
            "nothing": "nothing",
        }.items():
            out = material.out / f"draw-{name}-{seed}"
            steps = max(20, round(STEPS_A_MINUTE * material.minutes))
            config = DrawConfig(
                data=f"village:scenes:{seed}:8000", encoder=source, loop={"steps": steps}, seed=seed
            )
            trained(train_draw, config, out, material)
            drawn = draw(out, [scene.facts.caption for scene in scenes], guidance=2.0, seed=seed)
            right.setdefault(name, []).append(
                judge_drawings(reader, drawn, scenes).attributes["colour"].value
            )

    def minus(one: str, other: str) -> list[float]:
        return [a - b for a, b in zip(right[one], right[other], strict=True)]

    return [
        above(
            "colour as asked for, share: states minus nothing", minus("states", "nothing"), 0.0, n=PICTURES
        ),
        above(
            "colour as asked for, share: states minus one-hot words",
            minus("states", "words"),
            0.0,
            n=PICTURES,
        ),
    ]


CLAIM = Claim(
    28,
    "drawing",
    "A text encoder's states steer text-to-image",
    "frozen text encoders trained on text alone steer diffusion well (Saharia et al. 2022, arXiv:2205.11487)",
    "a diffusion model of 32 × 32 pixels on the village's scenes, steered by the cooks' base models, by "
    "one-hot words, by nothing; a "
    "classifier with a known error judges",
    measure,
    "The cooks' models are decoders that never read a description of a scene; one-hot words need nobody to have learned them, "
    "and steer better after few steps. 100 steps a minute given.",
    on_base=True,
)
