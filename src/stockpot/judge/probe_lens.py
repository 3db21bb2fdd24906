"""Two looks that need no training: what each layer would already say, and where each head looks.

The logit lens puts every layer's states through the model's own last norm and output; attention statistics average the
weights of every head over real text. Both stream: nothing of the size of a vocabulary or of a square of tokens is kept.

Sources: nostalgebraist 2020, "interpreting GPT: the logit lens"; Clark et al. 2019, arXiv:1906.04341 (where heads look).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.generate.inputs import batches_by_length, reading_only
from stockpot.judge.metrics import Estimate, mean_estimate
from stockpot.judge.probe_states import Reader, StackName

__all__ = ["HeadLook", "LensLayer", "attention_statistics", "logit_lens"]

BATCH_TOKENS = 1024
LOGIT_NUMBERS = 1 << 24


@dataclass(frozen=True)
class LensLayer:
    """What one layer would say if it were the last.

    Attributes:
        layer: its number; 0 is the embeddings.
        agrees: share of places where its first choice is the model's, averaged over texts.
        nats: mean nats of the next token (decoders) or of the token itself (encoders), averaged over texts.
    """

    layer: int
    agrees: Estimate
    nats: Estimate


@dataclass(frozen=True)
class HeadLook:
    """Where one head looks, averaged over tokens.

    Attributes:
        layer: from 1.
        head: from 1.
        entropy: of its weights, in nats.
        distance: mean distance in tokens.
        previous: share on the token before; likewise for ``following``, ``itself`` and ``first`` (the row's first token).
        following: see above.
        itself: see above.
        first: see above.
    """

    layer: int
    head: int
    entropy: float
    distance: float
    previous: float
    following: float
    itself: float
    first: float


def logit_lens(
    bundle: Bundle,
    texts: Sequence[str],
    *,
    stack: StackName | None = None,
    layers: Sequence[int] | None = None,
) -> list[LensLayer] | None:
    """Read texts layer by layer; None for a model, or a stack of it, that predicts no tokens.

    ``layers`` are those looked at, since each costs logits of every token; the last one is among them in any case.
    """
    reader = Reader(bundle, stack)
    model = bundle.model
    main = model.decoder if model.decoder is not None else model.encoder
    predicts = model.config.predicts and (model.decoder is None or reader.stack == "decoder")
    if not predicts or main is None:
        return None
    chosen = sorted({*(range(reader.depth) if layers is None else layers), reader.depth})
    agrees: dict[int, list[float]] = {layer: [] for layer in chosen}
    nats: dict[int, list[float]] = {layer: [] for layer in chosen}
    shift = int(model.decoder is not None)
    with reading_only(model):
        for hidden, _, ids, real in _read(reader, texts):
            counted = torch.ones_like(ids, dtype=torch.bool) if real is None else real.clone()
            counted = counted[:, shift:]
            wanted, rows = ids[:, shift:][counted], counted.nonzero()[:, 0]
            best: Tensor | None = None
            for layer in reversed(chosen):
                states = hidden[layer][:, : counted.shape[1]][counted]
                choice, cost = _said(bundle, states if main.norm is None else main.norm(states), wanted)
                best = choice if best is None else best
                agrees[layer] += _row_means((choice == best).float(), rows)
                nats[layer] += _row_means(cost, rows)
    return [
        LensLayer(layer, mean_estimate(agrees[layer], draws=500), mean_estimate(nats[layer], draws=500))
        for layer in chosen
    ]


def _row_means(values: Tensor, rows: Tensor) -> list[float]:
    """Return the mean of each row's values."""
    count = torch.bincount(rows)
    found: list[float] = (
        torch.bincount(rows, weights=values.double())[count > 0] / count[count > 0]
    ).tolist()
    return found


def _said(bundle: Bundle, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first choice and the nats of the wanted token at each place."""
    size = max(1, LOGIT_NUMBERS // bundle.model.config.vocab_size)
    choices, costs = [], []
    for part, targets in zip(torch.split(states, size), torch.split(wanted, size), strict=True):
        logits = bundle.model.logits(part).float()
        choices.append(logits.argmax(-1))
        costs.append(logits.logsumexp(-1) - logits.gather(1, targets[:, None])[:, 0])
    return torch.cat(choices), torch.cat(costs)


def attention_statistics(
    bundle: Bundle, texts: Sequence[str], *, stack: StackName | None = None
) -> list[HeadLook]:
    """Average where each head looks over the real tokens of the texts."""
    reader = Reader(bundle, stack)
    sums: Tensor | None = None
    tokens = 0.0
    for _, attention, ids, real in _read(reader, texts):
        seq = ids.shape[1]
        counted = torch.ones(ids.shape, dtype=torch.bool) if real is None else real.cpu()
        at = torch.arange(seq)
        far = (at[:, None] - at[None, :]).abs().float()
        weights = torch.stack(
            [layer.float().cpu() for layer in attention]
        )  # (layers, batch, heads, seq, seq)
        measures = [
            -(weights * weights.clamp(min=1e-20).log()).sum(-1),
            (weights * far).sum(-1),
            _diagonal(weights, -1),
            _diagonal(weights, 1),
            _diagonal(weights, 0),
            weights[..., 0],
        ]
        found = torch.stack(measures)  # (measures, layers, batch, heads, seq)
        part = (found * counted[None, None, :, None, :]).sum((2, 4), dtype=torch.float64)
        sums = part if sums is None else sums + part
        tokens += float(counted.sum())
    assert sums is not None
    means = (sums / tokens).tolist()
    return [
        HeadLook(layer + 1, head + 1, *(means[m][layer][head] for m in range(6)))
        for layer in range(len(means[0]))
        for head in range(len(means[0][0]))
    ]


def _diagonal(weights: Tensor, offset: int) -> Tensor:
    """Return each token's weight on the token ``offset`` places on; 0 where there is none."""
    found = torch.diagonal(weights, offset, -2, -1)
    pad = (abs(offset), 0) if offset < 0 else (0, offset)
    return torch.nn.functional.pad(found, pad)


def _read(
    reader: Reader, texts: Sequence[str]
) -> Iterator[tuple[list[Tensor], list[Tensor], Tensor, Tensor | None]]:
    before, after = reader.frame()
    room = reader.context - len(before) - len(after)
    coded = [reader.bundle.tokenizer.encode(text)[:room] for text in texts]
    rows = [[*before, *ids, *after] for ids in coded if ids]
    for batch in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
        yield reader.read([rows[i] for i in batch])
