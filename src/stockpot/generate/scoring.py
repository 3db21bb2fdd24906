"""Questions to a model that need no drawing: how likely is this text, what does it mean, what fits the gap.

Texts are sorted by length and run in batches; logits are computed only where a target is, and prompts that
several completions share are read once. Log-probabilities are natural logarithms in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.bundle import Bundle, Embedding
from stockpot.errors import GenerationError
from stockpot.generate.inputs import batches_by_length, completion_ids, pad, prompt_ids, seen_both_ways
from stockpot.generate.prefixes import LEAST, Held, Prefixes, shared_beginning
from stockpot.generate.request import Fill, Prompt, Score
from stockpot.model.cache import KVCache
from stockpot.model.heads import last_real, mean_real
from stockpot.model.quantized import QuantizedTransformer

__all__ = ["Pooling", "embed_texts", "fill_gaps", "score_pairs"]

Pooling: TypeAlias = Literal["mean", "cls", "last"]

BATCH_TOKENS = 4096
ROW_TOKENS = 384  # of prompts with all their completions in one row: attention within it stays cheap
LOGIT_NUMBERS = 1 << 24  # logits held at once (64 MiB in float32)

Encoded = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and completion
Judged = tuple[float, bool]  # log-probability, and whether it is what greedy decoding writes


def score_pairs(
    bundle: Bundle, pairs: Sequence[tuple[Prompt, str | Sequence[int]]], prefixes: Prefixes
) -> list[Score]:
    """Score completions of prompts; see :meth:`stockpot.Engine.score`."""
    encoded = [_encode_pair(bundle, prompt, completion) for prompt, completion in pairs]
    _refuse_long(bundle, encoded)
    different = list(dict.fromkeys(encoded))
    judged: dict[Encoded, Judged] = {}
    is_seq2seq = bundle.model.config.encoder is not None
    runs = _run_seq2seq(bundle, different) if is_seq2seq else _run_decoder(bundle, different, prefixes)
    for found in runs:
        judged.update(found)
    return [
        Score(
            log_prob=judged[pair][0],
            tokens=len(pair[1]),
            bytes=_byte_count(bundle, completion),
            is_greedy=judged[pair][1],
        )
        for pair, (_, completion) in zip(encoded, pairs, strict=True)
    ]


def _encode_pair(bundle: Bundle, prompt: Prompt, completion: str | Sequence[int]) -> Encoded:
    if bundle.model.config.decoder is None:
        raise GenerationError("An encoder gives no probability to a whole text.", "Use fill, or a decoder.")
    if not bundle.model.config.predicts:
        raise GenerationError(
            "This model makes vectors only; it cannot score.", "Use embed, or another model."
        )
    pair = tuple(prompt_ids(bundle, prompt)), tuple(completion_ids(bundle, completion))
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


def _run_decoder(
    bundle: Bundle, pairs: Sequence[Encoded], prefixes: Prefixes
) -> Iterator[dict[Encoded, Judged]]:
    """Read each prompt once, then all its completions behind copies of what was read."""
    sharing: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, completion in pairs:
        sharing.setdefault(prompt, []).append(completion)
    prompts = list(sharing)
    # A prompt takes as many rows as it has completions.
    costs = [len(prompt) * len(sharing[prompt]) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    batch: list[tuple[int, ...]] = []
    cost = 0
    for index in order:
        if batch and cost + costs[index] > BATCH_TOKENS:
            yield _run_prompts(bundle, batch, sharing, prefixes)
            batch, cost = [], 0
        batch.append(prompts[index])
        cost += costs[index]
    if batch:
        yield _run_prompts(bundle, batch, sharing, prefixes)


def _run_prompts(
    bundle: Bundle,
    prompts: Sequence[tuple[int, ...]],
    sharing: dict[tuple[int, ...], list[tuple[int, ...]]],
    prefixes: Prefixes,
) -> dict[Encoded, Judged]:
    """Score all completions of some prompts.

    The first token of a completion is judged by the prompt's last hidden state, so only the others have to be
    run. What all prompts begin with is read once, also for the calls after this one.
    """
    model = bundle.model
    rows = [(row, completion) for row, prompt in enumerate(prompts) for completion in sharing[prompt]]
    longest = max(len(completion) for _, completion in rows)
    held, known = _beginning(bundle, prompts, prefixes)
    if held is None and longest > 1 and _fits_one_row(bundle, prompts, sharing):
        found: dict[Encoded, Judged] = {}
        for some in _packed(prompts, sharing):
            found |= _run_branches(bundle, some, sharing)
        return found
    ids, real = pad([prompt[known:] for prompt in prompts], model.device)
    cache = None
    if longest > 1 or held is not None:
        cache = model.new_cache(len(prompts), known + ids.shape[1] + longest - 1)
    if cache is not None and held is not None:
        held.put(cache, slice(None), known)
        cache.lengths += known
        cache.extent = known
    both = seen_both_ways(bundle, ids)
    hidden = model(ids, attention_mask=real, segments=both, cache=cache, last=0).hidden
    ends = last_real(hidden, real)  # (prompts, dim)
    owners = torch.tensor([row for row, _ in rows], device=model.device)
    states = ends[owners].unsqueeze(1)  # (rows, 1, dim)
    if cache is not None and longest > 1:
        begun, begun_real = pad([completion[:-1] or (0,) for _, completion in rows], model.device)
        branches = _branch(cache, owners)
        rest = model(begun, attention_mask=begun_real, cache=branches, last=0).hidden
        states = torch.cat((states, rest), dim=1)  # (rows, longest, dim)
    judged = _judge(bundle, states, [completion for _, completion in rows])
    return {(prompts[row], completion): one for (row, completion), one in zip(rows, judged, strict=True)}


def _fits_one_row(
    bundle: Bundle, prompts: Sequence[tuple[int, ...]], sharing: dict[tuple[int, ...], list[tuple[int, ...]]]
) -> bool:
    """Say whether each prompt and all its completions fit a short row: then one call is enough, without a cache."""
    config = bundle.model.config
    if config.shape != "decoder" or config.main.attends != "causal":
        return False
    if isinstance(
        bundle.model, QuantizedTransformer
    ):  # its products depend a little on what else is in the call
        return False
    return all(len(prompt) + sum(map(len, sharing[prompt])) <= ROW_TOKENS for prompt in prompts)


def _packed(
    prompts: Sequence[tuple[int, ...]], sharing: dict[tuple[int, ...], list[tuple[int, ...]]]
) -> Iterator[list[tuple[int, ...]]]:
    """Part prompts so that each part, with all its completions, fills one row; nothing is padded."""
    some: list[tuple[int, ...]] = []
    held = 0
    for prompt in prompts:
        size = len(prompt) + sum(len(one) - 1 for one in sharing[prompt])
        if some and held + size > ROW_TOKENS:
            yield some
            some, held = [], 0
        some.append(prompt)
        held += size
    yield some


def _run_branches(
    bundle: Bundle, prompts: Sequence[tuple[int, ...]], sharing: dict[tuple[int, ...], list[tuple[int, ...]]]
) -> dict[Encoded, Judged]:
    """Score all completions of some prompts in one row: each prompt is a document, its completions are the branches."""
    ids: list[int] = []
    documents: list[int] = []
    branches: list[int] = []
    places: list[tuple[int, ...]] = []
    pairs: list[Encoded] = []
    for document, prompt in enumerate(prompts, 1):
        ids += prompt
        branches += [0] * len(prompt)
        end = len(ids) - 1
        for number, completion in enumerate(sharing[prompt], 1):
            body = completion[:-1]  # what follows the last token is not asked
            places.append((end, *range(len(ids), len(ids) + len(body))))
            ids += body
            branches += [number] * len(body)
            pairs.append((prompt, completion))
        documents += [document] * (len(ids) - len(documents))
    ids_, documents_, branches_ = torch.tensor([ids, documents, branches], device=bundle.model.device)[
        :, None
    ]
    mask = documents_ if len(prompts) > 1 else None
    hidden = bundle.model(ids_, attention_mask=mask, branches=branches_, last=0).hidden
    states = hidden[0, pad(places, hidden.device)[0]]  # (pairs, longest, dim)
    return dict(zip(pairs, _judge(bundle, states, [completion for _, completion in pairs]), strict=True))


def _beginning(
    bundle: Bundle, prompts: Sequence[tuple[int, ...]], prefixes: Prefixes
) -> tuple[Held | None, int]:
    """Return what all prompts begin with, read now if it is not held yet, and its length."""
    common = min(shared_beginning(prompts), min(map(len, prompts)) - 1)
    begin = prompts[0][: common + 1]
    held, known = prefixes.find(begin)
    if not prefixes.is_on or len(prompts) == 1 or common < LEAST or known == common:
        return held, known
    cache = bundle.model.new_cache(1, common)
    bundle.model(torch.tensor([begin[:-1]], device=bundle.model.device), cache=cache, last=0)
    prefixes.keep(begin[:-1], cache, 0)
    return Held.of(begin[:-1], cache, 0), common


def _branch(cache: KVCache, owners: Tensor) -> KVCache:
    """Give every completion its own copy of its prompt's row."""
    if owners.shape[0] == cache.batch:
        return cache
    grown = KVCache(0, owners.shape[0], 1, cache.capacity, 1, device=owners.device)
    grown.keys = [keys.index_select(0, owners) for keys in cache.keys]
    grown.values = [values.index_select(0, owners) for values in cache.values]
    grown.lengths = cache.lengths.index_select(0, owners)
    grown.extent, grown.is_even = cache.extent, cache.is_even
    return grown


def _run_seq2seq(bundle: Bundle, pairs: Sequence[Encoded]) -> Iterator[dict[Encoded, Judged]]:
    """Read sources with the encoder and completions with the decoder, in batches of like lengths."""
    device, start = bundle.model.device, bundle.start_id
    lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
    for batch in batches_by_length(lengths, BATCH_TOKENS):
        chosen = [pairs[index] for index in batch]
        source, source_mask = pad([prompt for prompt, _ in chosen], device)
        ids, real = pad([(start, *completion[:-1]) for _, completion in chosen], device)
        out = bundle.model(ids, source=source, source_mask=source_mask, attention_mask=real, last=0)
        judged = _judge(bundle, out.hidden, [completion for _, completion in chosen])
        yield dict(zip(chosen, judged, strict=True))


def _judge(bundle: Bundle, states: Tensor, completions: Sequence[tuple[int, ...]]) -> list[Judged]:
    """Judge whole completions by the hidden states before their tokens ``(rows, seq, dim)``."""
    targets, real = pad(completions, states.device)
    if real is None:
        real = torch.ones_like(targets, dtype=torch.bool)
    wanted, flat = states[real], targets[real]  # (tokens, dim), (tokens,)
    size = max(1, LOGIT_NUMBERS // bundle.model.config.vocab_size)
    parts = [
        _judge_tokens(bundle, *part)
        for part in zip(torch.split(wanted, size), torch.split(flat, size), strict=True)
    ]
    log_probs = torch.zeros(real.shape, dtype=torch.float64)
    log_probs[real.cpu()] = torch.cat([part[0] for part in parts]).double().cpu()
    greedy = torch.ones(real.shape, dtype=torch.bool)
    greedy[real.cpu()] = torch.cat([part[1] for part in parts]).cpu()
    return list(zip(log_probs.sum(1).tolist(), greedy.all(1).tolist(), strict=True))


def _judge_tokens(bundle: Bundle, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = bundle.model.logits(states).float()  # (tokens, vocab)
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(1), logits.argmax(1) == targets


# --- meaning ---


def embed_texts(bundle: Bundle, texts: Sequence[str], pool: Pooling | None) -> Tensor:
    """Turn texts into vectors ``(batch, dim)``; see :meth:`stockpot.Engine.embed`."""
    if isinstance(texts, str):
        raise TypeError("embed takes a list of texts; put the text into a list")
    config = bundle.model.config
    own = bundle.embedding or Embedding()
    context = min((config.encoder or config.main).context, own.most_tokens or sys.maxsize)
    rows = [bundle.encode(own.prompt + text, most=context) for text in texts]
    for number, row in enumerate(rows):
        if not row:
            raise GenerationError(f"Text {number} is empty and has no vector.", "Leave empty texts out.")
    vectors = torch.empty(len(rows), config.dim)
    for batch in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
        ids, real = pad([rows[index] for index in batch], bundle.model.device)
        if config.shape == "encoder_decoder":
            hidden = bundle.model.encode(ids, real)
        else:
            hidden = bundle.model(ids, attention_mask=real, last=0).hidden
        vectors[batch] = _pooled(hidden, real, pool or own.pool).float().cpu()
    return F.normalize(vectors) if own.normalise else vectors


def _pooled(hidden: Tensor, real: Tensor | None, pool: Pooling) -> Tensor:
    if pool == "cls":
        return hidden[:, 0]
    if pool == "last":
        return last_real(hidden, real)
    if pool == "mean":
        return mean_real(hidden, real)
    raise ValueError(f"pool is {pool!r}; expected mean, cls or last")


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
