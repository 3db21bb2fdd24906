"""Choosing among answers by their probability: plainly, per length, against what is said anyway, or calibrated.

Matrices of log-probabilities ``(items, options)`` in nats go in and come out; the largest entry of a row is the choice.
Only `option_log_probs` runs a model, through the engine, which reads each prompt once whatever the number of options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Prompt

__all__ = [
    "CONTENT_FREE",
    "METHODS",
    "Method",
    "Numbers",
    "calibrated",
    "check_options",
    "option_log_probs",
    "per_byte",
    "pmi",
    "relative",
]

Numbers: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["plain", "length", "pmi", "calibrated"]
METHODS: tuple[Method, ...] = ("plain", "length", "pmi", "calibrated")
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, arXiv:2102.09690, §5


def option_log_probs(engine: Engine, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Numbers:
    """Score options of prompts: summed log-probability of all tokens of each, ``(prompts, options)``, nats.

    Args:
        engine: of a decoder or an encoder-decoder.
        prompts: what stands before.
        options: as many for each prompt.
    """
    pairs = [(prompt, one) for prompt, row in zip(prompts, options, strict=True) for one in row]
    scores = [score.log_prob for score in engine.score(pairs)]
    return np.array(scores, dtype=np.float64).reshape(len(prompts), -1)


def check_options(bundle: Bundle, words: Sequence[str]) -> None:
    """Refuse answers that a model could not tell apart or cannot spell.

    An answer of several tokens is fine: its probability is that of all its tokens.

    Raises:
        GenerationError: naming the word and the reason.
    """
    seen: dict[tuple[int, ...], str] = {}
    for word in words:
        ids = tuple(bundle.tokenizer.encode(word))
        if not ids:
            raise GenerationError(f"The label word {word!r} has no tokens.", "Choose another word.")
        if bundle.tokenizer.unk_id is not None and bundle.tokenizer.unk_id in ids:
            raise GenerationError(
                f"The label word {word!r} is not in this model's vocabulary: part of it becomes the unknown token.",
                "Choose a word the model knows, or a model whose tokenizer can spell everything.",
            )
        if ids in seen:
            raise GenerationError(
                f"The label words {seen[ids]!r} and {word!r} are the same tokens to this model.",
                "Choose words that differ.",
            )
        seen[ids] = word


def relative(log_probs: Numbers) -> Numbers:
    """Divide each row's probabilities by their sum, as log-probabilities.

    >>> relative(np.log([[0.1, 0.3]])).round(3).tolist()
    [[-1.386, -0.288]]
    """
    top = log_probs.max(axis=1, keepdims=True)
    total: Numbers = np.log(np.exp(log_probs - top).sum(axis=1, keepdims=True)) + top
    return log_probs - total


def per_byte(log_probs: Numbers, options: Sequence[Sequence[str]]) -> Numbers:
    """Divide by the UTF-8 bytes of each option, so that longer ones are not less likely for their length alone.

    >>> per_byte(np.array([[-4.0, -6.0]]), [[" no", " maybe"]]).tolist()
    [[-1.3333333333333333, -1.0]]
    """
    sizes = np.array([[max(1, len(one.encode())) for one in row] for row in options], dtype=np.float64)
    return log_probs / sizes


def pmi(log_probs: Numbers, without: Numbers) -> Numbers:
    """Subtract how likely each option is without the item: pointwise mutual information.

    Args:
        log_probs: ``(items, options)``.
        without: ``(1, options)`` or ``(items, options)``: after a prompt that holds no item.

    Source: Holtzman et al. 2021, arXiv:2104.08315, eq. 2 (domain-conditional PMI).
    """
    return log_probs - without


def calibrated(log_probs: Numbers, content_free: Numbers) -> Numbers:
    """Rescale label probabilities so that an item without content would get all labels equally.

    A model that answers "positive" to "N/A" with 0.7 leans that way; its 0.7 for "positive" then counts for nothing:

    >>> leaning = np.log([[0.7, 0.3]])
    >>> np.exp(calibrated(np.log([[0.7, 0.3], [0.5, 0.5]]), leaning)).round(2).tolist()
    [[0.5, 0.5], [0.3, 0.7]]

    Args:
        log_probs: ``(items, options)``.
        content_free: ``(inputs, options)``, after prompts whose fields say nothing (``CONTENT_FREE``).

    Returns:
        log-probabilities that sum to one in each row.

    Source: Zhao et al. 2021, arXiv:2102.09690, §5: W = diag(p_cf)⁻¹, b = 0, p_cf the mean over inputs.
    """
    lean = np.exp(relative(content_free)).mean(axis=0, keepdims=True)
    return relative(relative(log_probs) - np.log(lean))
