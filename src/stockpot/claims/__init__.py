"""The claims: what the lecture and its sources say, tried in miniature, with a verdict that a result file holds.

One short file a row; `CLAIMS` lists them. Rows in which no effect is claimed stand in `WITHOUT_EFFECT` with the tests that hold
them.
"""

from __future__ import annotations

from stockpot.claims import (
    r01_unknown_words,
    r02_subwords,
    r03_order,
    r04_layer,
    r05_encoder,
    r06_decoder,
    r08_three_kinds,
    r09_cross_entropy,
    r10_inference,
    r11_layers,
    r12_budget,
    r13_wording,
    r14_soft_prompt,
    r15_examples,
    r16_steps,
    r17_retrieval,
    r18_instructions,
    r20_dpo,
    r21_rlhf,
    r22_small_large,
    r23_programs,
    r25_emergence,
    r26_mirage,
    r27_pictures,
    r28_drawing,
    r29_soup,
)
from stockpot.claims.claim import Claim, Finding, Material, Result, run_claim

__all__ = ["CLAIMS", "WITHOUT_EFFECT", "Claim", "Finding", "Material", "Result", "run_claim"]

CLAIMS: tuple[Claim, ...] = (
    r01_unknown_words.CLAIM,
    r02_subwords.CLAIM,
    r03_order.CLAIM,
    r04_layer.CLAIM,
    r05_encoder.CLAIM,
    r06_decoder.CLAIM,
    r08_three_kinds.CLAIM,
    r09_cross_entropy.CLAIM,
    r10_inference.CLAIM,
    r11_layers.CLAIM,
    r12_budget.CLAIM,
    r13_wording.CLAIM,
    r14_soft_prompt.CLAIM,
    r15_examples.CLAIM,
    r16_steps.CLAIM,
    r17_retrieval.CLAIM,
    r18_instructions.CLAIM,
    r20_dpo.CLAIM,
    r21_rlhf.CLAIM,
    r22_small_large.CLAIM,
    r23_programs.CLAIM,
    r25_emergence.CLAIM,
    r26_mirage.CLAIM,
    r27_pictures.CLAIM,
    r28_drawing.CLAIM,
    r29_soup.CLAIM,
)

WITHOUT_EFFECT: dict[int, tuple[str, str]] = {
    7: (
        "Encoder-decoder (T5): loads real checkpoints with equal outputs, fills spans; compared in `three-kinds`",
        "tests/weights",
    ),
    19: ("Human feedback: pages, files and formats of comparisons", "tests/serve"),
    24: ("Explaining a joke: a prompt for people to judge, no automatic claim", "tests/prompt"),
}
"""Row → (what it is, where tests hold it)."""
