"""Questions to a model that need no drawing: how likely is this text, what fits the gap.

Texts are sorted by length and run in batches; how a decoder's completions are judged is `likelihood`'s. Log-probabilities
are natural logarithms in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.inputs import batches_by_length, completion_ids, pad, prompt_ids
from stockpot.generate.likelihood import Encoded, Judged, judge_completions, run_decoder
from stockpot.generate.prefixes import Prefixes
from stockpot.generate.request import DamagedModelError, Fill, Prompt, Score

__all__ = ["fill_gaps", "score_pairs"]

BATCH_TOKENS = 4096


def score_pairs(
    bundle: Bundle, pairs: Sequence[tuple[Prompt, str | Sequence[int]]], prefixes: Prefixes
) -> list[Score]:
    """Score completions of prompts; see :meth:`stockpot.Engine.score`."""
    read = [_encode_pair(bundle, prompt, completion) for prompt, completion in pairs]
    encoded = [(tuple(prompt), tuple(completion)) for prompt, completion in read]
    _refuse_long(bundle, encoded)
    different = list(dict.fromkeys(encoded))
    judged: dict[Encoded, Judged] = {}
    is_seq2seq = bundle.model.config.encoder is not None
    runs = _run_seq2seq(bundle, different) if is_seq2seq else run_decoder(bundle, different, prefixes)
    for found in runs:
        if any(math.isnan(log_prob) for log_prob, _ in found.values()):
            raise DamagedModelError
        judged.update(found)
    return [
        Score(
            log_prob=judged[pair][0],
            tokens=len(pair[1]),
            bytes=_byte_count(bundle, completion),
            is_greedy=judged[pair][1] > 0,
            gap=judged[pair][1],
        )
        for pair, (_, completion) in zip(encoded, pairs, strict=True)
    ]


def _encode_pair(
    bundle: Bundle, prompt: Prompt, completion: str | Sequence[int]
) -> tuple[list[int], list[int]]:
    """Encode a pair; the prompt's list keeps its pictures while it lives."""
    if bundle.model.config.decoder is None:
        raise GenerationError("An encoder gives no probability to a whole text.", "Use fill, or a decoder.")
    if not bundle.model.config.predicts:
        raise GenerationError(
            "This model makes vectors only; it cannot score.", "Use embed, or another model."
        )
    pair = prompt_ids(bundle, prompt), completion_ids(bundle, completion)
    if not pair[0] or not pair[1]:
        raise GenerationError(
            f"A pair to score has an empty {'completion' if pair[0] else 'prompt'}.",
            "Give at least one token on each side.",
        )
    return pair


def _refuse_long(bundle: Bundle, encoded: Sequence[Encoded]) -> None:
    encoder, context = bundle.model.config.encoder, bundle.context
    for number, (prompt, completion) in enumerate(encoded):
        asked, said = len(prompt), len(completion)
        fits = asked + said <= context if encoder is None else asked <= encoder.context and said <= context
        if not fits:
            raise GenerationError(
                f"Pair {number} has {asked} + {said} tokens, more than the model's context of {context}.",
                "Shorten it, or use a model with a longer context.",
            )


def _byte_count(bundle: Bundle, completion: str | Sequence[int]) -> int:
    if isinstance(completion, str):
        return len(completion.encode("utf-8", errors="surrogatepass"))
    return sum(int(bundle.tokenizer.byte_lengths[id]) for id in completion)


def _run_seq2seq(bundle: Bundle, pairs: Sequence[Encoded]) -> Iterator[dict[Encoded, Judged]]:
    """Read sources with the encoder and completions with the decoder, in batches of like lengths."""
    device, start = bundle.model.device, bundle.start_id
    lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
    for batch in batches_by_length(lengths, BATCH_TOKENS):
        chosen = [pairs[index] for index in batch]
        source, source_mask = pad([prompt for prompt, _ in chosen], device)
        ids, real = pad([(start, *completion[:-1]) for _, completion in chosen], device)
        out = bundle.model(ids, source=source, source_mask=source_mask, attention_mask=real, last=0)
        states = out.hidden.flatten(0, 1) if real is None else out.hidden[real]
        judged = judge_completions(bundle, states, [completion for _, completion in chosen])
        yield dict(zip(chosen, judged, strict=True))


# --- gaps ---


def fill_gaps(bundle: Bundle, text: str, top: int) -> list[list[Fill]]:
    """Fill each gap of a text; see :meth:`stockpot.Engine.fill`."""
    tokenizer = bundle.tokenizer
    mask_id = tokenizer.mask_id
    mark = None if mask_id is None else tokenizer.id_to_token(mask_id)
    if bundle.model.config.shape != "encoder" or mask_id is None or mark is None:
        raise GenerationError(
            "Gaps are filled by an encoder with a mask token or by an encoder-decoder.",
            "Use generate instead.",
        )
    if not bundle.model.config.predicts:
        raise GenerationError(
            "This encoder makes vectors only; it has no head for words.", "Use embed, or another encoder."
        )
    if mark not in text:
        raise GenerationError(
            f"The text has no gap; a gap is written {mark}.", f'Example: "The sky is {mark}."'
        )
    ids = _gapped_ids(bundle, text.split(mark), mask_id)
    if len(ids) > bundle.context:
        raise GenerationError(
            f"The text has {len(ids)} tokens; this model takes {bundle.context}.", "Shorten it."
        )
    places = [place for place, id in enumerate(ids) if id == mask_id]
    hidden = bundle.model(torch.tensor([ids], device=bundle.model.device), last=0).hidden
    best = bundle.model.logits(hidden[0, places]).float().softmax(-1).topk(min(top, tokenizer.vocab_size))
    return [
        [
            _filled(bundle, ids, place, id, probability)
            for id, probability in zip(row_ids, values, strict=True)
        ]
        for place, row_ids, values in zip(places, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _gapped_ids(bundle: Bundle, pieces: Sequence[str], mask_id: int) -> list[int]:
    """Encode the text around the gaps; only here does a mask token come from outside the tokenizer.

    A space before a gap belongs to the word that fills it, except where every character is its own token.
    """
    tokenizer = bundle.tokenizer
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        is_last = number == len(pieces) - 1
        if not is_last and tokenizer.kind not in ("char", "byte"):
            piece = piece.rstrip()
        ids += tokenizer.encode(piece)
        if not is_last:
            ids.append(mask_id)
    first, last = bundle.frame
    return [*first, *ids, *last]


def _filled(bundle: Bundle, ids: Sequence[int], place: int, id: int, probability: float) -> Fill:
    whole = [*ids[:place], id, *ids[place + 1 :]]
    mask_id = bundle.tokenizer.mask_id
    text = _keep_marks(bundle, whole, mask_id)
    return Fill(bundle.tokenizer.decode([id]), id, probability, text)


def _keep_marks(bundle: Bundle, ids: Sequence[int], mask_id: int | None) -> str:
    """Decode without special tokens, except for gaps that are still open."""
    first, last = bundle.frame
    framing = {*first, *last} - {mask_id}
    return bundle.tokenizer.decode([id for id in ids if id not in framing])
