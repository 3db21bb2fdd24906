"""Whether a tokenizer belongs to a model, where it knows more ids than the model has.

Some models are published like that: Gemma 3 1B's tokenizer names a token for images behind the last id of a model that
reads none. As in transformers such a model opens, as long as nothing can become one of those ids.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from stockpot.errors import CheckpointError
from stockpot.text.tokenizer import Tokenizer

__all__ = ["refuse_other_vocabulary"]

SHOWN = 3


def refuse_other_vocabulary(tokenizer: Tokenizer, size: int, where: Path) -> None:
    """Refuse a tokenizer with ids that a model of ``size`` ids lacks; warn if they are special tokens without a role.

    Raises:
        CheckpointError: if text could become one of those ids, or one ends a text or stands in the chat template.
    """
    if tokenizer.vocab_size <= size:
        return
    spare = [token for token, number in tokenizer.special_ids.items() if number >= size]
    needed = [
        token
        for token in spare
        if token in tokenizer.roles.values() or token in (tokenizer.chat_template or "")
    ]
    if needed or len(spare) < tokenizer.vocab_size - size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model {size}.",
            "Tokenizer and weights must come from the same model.",
        )
    named = ", ".join(spare[:SHOWN]) + (" …" if len(spare) > SHOWN else "")
    warnings.warn(
        f"{where}: the tokenizer has {len(spare)} special token(s) that the model lacks ({named}); no text becomes one.",
        RuntimeWarning,
        stacklevel=3,
    )
