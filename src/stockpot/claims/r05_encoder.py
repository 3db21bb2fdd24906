"""Row 5: an encoder learns to fill gaps, and whether a sentence follows another."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import trained
from stockpot.model.config import encoder
from stockpot.run import Run
from stockpot.stages.pretrain import PretrainConfig, pretrain
from stockpot.train.loop import LoopConfig


def measure(material: Material) -> Sequence[Finding]:
    """Pretrain small encoders on masked words and pairs of sentences, with a cook's tokenizer."""
    masked, pairs = [], []
    for seed, cook in zip(material.seeds, material.cooks, strict=False):
        run = _pretrained(cook, seed, material)
        masked.append(run.last("val/accuracy"))
        pairs.append(run.last("val/pair_accuracy"))
    return [
        above("masked tokens restored, share (the commonest token: about 0.05)", masked, 0.2),
        above("told whether the second sentence follows, share (guessing: 0.5)", pairs, 0.5),
    ]


def _pretrained(cook: object, seed: int, material: Material) -> Run:
    folder = material.out / f"encoder-{seed}"
    config = PretrainConfig(
        data=("village:documents:0:8000",),
        tokenizer=f"{cook}/tokenizer",
        objective="pairs",
        model=encoder(layers=3, dim=128, heads=2, context=128, vocab_size=1),
        minutes=material.minutes / 3,
        loop=LoopConfig(batch_tokens=4096),
        seed=seed,
    )
    return trained(pretrain, config, folder, material)


CLAIM = Claim(
    5,
    "encoder",
    "An encoder restores masked words and tells what follows",
    "BERT masks 15 % of the tokens and predicts whether the second sentence continues the first (Devlin et al. 2019, "
    "arXiv:1810.04805)",
    "encoders of three layers on 8,000 village documents",
    measure,
    on_base=True,
)
