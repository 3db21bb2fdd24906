"""Row 6: a decoder predicts the next token better than counting does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from stockpot.claims.claim import Claim, Finding, Material, below
from stockpot.claims.material import open_stage
from stockpot.generate.engine import Engine
from stockpot.run import Run
from stockpot.stages.ledger_lines import training_ids
from stockpot.train.ngram import NGram
from stockpot.village import Village

DOCUMENTS = 150


@torch.inference_mode()
def measure(material: Material) -> Sequence[Finding]:
    """Weigh the same held-out documents by both, in bits a byte."""
    off = []
    for cook in material.cooks:
        bundle = open_stage(cook, "pretrain")
        tokens = int(Run.open(cook / "pretrain").last("tokens"))
        counted = NGram.read(
            training_ids(bundle.tokenizer, ("village",), min(tokens, 4_000_000)), bundle.tokenizer.vocab_size
        )
        texts = [one["text"] for one in islice(Village().documents("val"), DOCUMENTS)]
        first = [bundle.tokenizer.encode(text)[:200] for text in texts]
        pairs = [(ids[:1], ids[1:]) for ids in first]
        ours = sum(one.log_prob for one in Engine(bundle).score(pairs))
        theirs = sum(counted.log_prob(before, after) for before, after in pairs)
        size = sum(int(np.sum(bundle.tokenizer.byte_lengths[ids[1:]])) for ids in first)
        off.append((theirs - ours) / math.log(2) / size)
    return [below("bits a byte, base model minus 5-gram of the same text", off, 0.0, n=DOCUMENTS)]


CLAIM = Claim(
    6,
    "decoder",
    "A decoder predicts the next token better than counts of words do",
    "neural language models overtook smoothed n-grams (Bengio et al. 2003, JMLR 3; Radford et al. 2018)",
    "the cooks' base models against interpolated Kneser–Ney 5-grams of the same text (4 million tokens at most)",
    measure,
    on_base=True,
)
