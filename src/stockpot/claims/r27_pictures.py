"""Row 27: a frozen model speaks of pictures once adapters are added."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above, held
from stockpot.claims.material import trained
from stockpot.judge.images import ImageReport, evaluate_images
from stockpot.stages.align_image import AlignImageConfig, align_image

LIMIT, STEPS = 3000, 250


def measure(material: Material) -> Sequence[Finding]:
    """Give each base model eyes, once with a linear layer alone and once with adapters; exchange the pictures."""
    told, follows, frozen = [], [], []
    seconds = 0.0
    for cook, seed in zip(material.cooks, material.seeds, strict=False):
        reports: dict[str, ImageReport] = {}
        tower: str | None = None  # the same eyes for both
        for adapters in ("linear", "bottleneck"):
            out = material.out / f"eyes-{adapters}-{seed}"
            config = AlignImageConfig(
                model=str(cook / "pretrain"),
                vision=tower,
                adapters=adapters,
                limit=LIMIT,
                loop={"steps": STEPS},
                seed=seed,
            )
            run = trained(align_image, config, out, material)
            tower = tower or str(out / "tower")
            reports[adapters] = evaluate_images(out, "village:scenes/val", limit=150)
            frozen.append(float(bool(run.manifest.get("frozen_sha256"))))
            seconds += run.manifest.get("seconds", 0.0)
        exact = {name: one.score("all", "caption exact").value for name, one in reports.items()}
        told.append(exact["bottleneck"] - exact["linear"])
        text = run.manifest["text_loss"]
        material.told.append(
            f"Seed {seed}: {exact['linear']:.3f} of the captions right, with adapters {exact['bottleneck']:.3f}; "
            f"loss on plain text {text['before']:.3f}, with adapters {text['after']:.3f}."
        )
        follows.append(reports["bottleneck"].score("all", "follows: own over other").value)
    material.told.append(f"Training took {seconds:,.0f} s in all.")
    return [
        above("caption exactly right: adapters minus linear layer alone", told, 0.0, n=150),
        above("right caption likelier with its own picture than with another, share", follows, 0.5, n=150),
        held("frozen weights are proven by hash (a run in which one changed fails)", frozen),
    ]


CLAIM = Claim(
    27,
    "pictures",
    "A frozen model with a linear layer says “whatever”; with adapters it says what is there",
    "MAGMA adds adapters to a frozen language model (Eichenberg et al. 2021, arXiv:2112.05253)",
    "the cooks' base models, 3,000 captions of coloured shapes, 250 steps; half of the held-out scenes show pairs never seen",
    measure,
    "One caption in seven is right as a whole, where the linear layer alone gets none: the direction is the claim's, the level "
    "is that of 250 steps. And adapters act on text without pictures, too: the loss on it doubles.",
    on_base=True,
)
