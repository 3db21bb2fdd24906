"""How likely a decoder finds completions, with nothing read twice: rows that begin alike are a tree, of a trunk and branches.

Whatever several rows begin with is read once, be it a prompt, half of it, or the beginning of the completions themselves; what
all rows of a call begin with is also kept for later calls. Short trees share one row of the model's input without padding; others
go on from copies of their trunk's cache. Logits are computed only where a target is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.generate.inputs import pad, seen_both_ways
from stockpot.generate.prefixes import LEAST, Held, Prefixes, shared_beginning, shared_length
from stockpot.model import native_stack
from stockpot.model.cache import KVCache
from stockpot.model.quantized import QuantizedTransformer

__all__ = ["Encoded", "Judged", "Tree", "grow_trees", "judge_completions", "run_decoder"]

BATCH_TOKENS = 4096
ROW_TOKENS = 192  # of trees in one row: attention within it is cheap, products as fast as with more
TREE_TOKENS = 384  # of a tree that has a row of its own
WHOLE_TOKENS = 2048  # of a tree that our kernels read as one: attention looks at all pairs of them
WORTH_JOINING = 4  # a quarter of a pair's ids: with less it is read with what is held of it, in two calls
LOGIT_NUMBERS = 1 << 24  # logits held at once (64 MiB in float32)

Encoded: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and completion
Judged: TypeAlias = tuple[float, float]  # log-probability, and the gap of `Score`


@dataclass
class Tree:
    """Pairs whose ids begin alike.

    Attributes:
        pairs: prompts and completions.
        trunk: ids that all of them begin with; the last id of a pair is never among them, since nothing follows it.
    """

    pairs: list[Encoded]
    trunk: tuple[int, ...]

    def rest(self, pair: Encoded) -> tuple[int, ...]:
        """Return what is read of a pair behind the trunk."""
        prompt, completion = pair
        return (*prompt, *completion)[len(self.trunk) : -1]

    @property
    def rests(self) -> list[tuple[int, ...]]:
        """What is read of each pair behind the trunk."""
        return [self.rest(pair) for pair in self.pairs]

    @property
    def size(self) -> int:
        """Ids that are read."""
        return len(self.trunk) + sum(map(len, self.rests))


def grow_trees(pairs: Sequence[Encoded], *, whole_prompts: bool = False) -> list[Tree]:
    """Put pairs together wherever that leaves less to be read.

    Args:
        pairs: different ones.
        whole_prompts: the trunk has to be the prompt, since the model reads prompts in both directions.

    >>> a, b, c = ((1, 2), (3, 4)), ((1, 2), (3, 5)), ((9,), (3,))
    >>> [(tree.trunk, tree.rests) for tree in grow_trees([c, a, b])]
    [((1, 2, 3), [(), ()]), ((9,), [()])]
    """
    ordered = sorted(pairs, key=lambda pair: (*pair[0], *pair[1]))
    if whole_prompts:
        return [Tree(list(some), prompt) for prompt, some in groupby(ordered, key=lambda pair: pair[0])]
    trees = _joined(ordered, 0)
    common = shared_beginning(_row(pair) for pair in (ordered[0], ordered[-1]))
    if common < LEAST:
        return trees
    # What everything begins with can be read once for all trees (and is kept); then it does not speak for joining them.
    others = _joined(ordered, common)
    saved = sum(tree.size for tree in trees) - common - sum(tree.size - common for tree in others)
    has_prompts = ordered[0][0] != ordered[-1][0]
    return others if saved > 0 or (saved == 0 and has_prompts) else trees


def _row(pair: Encoded) -> tuple[int, ...]:
    """Return what is read of a pair."""
    return pair[0] + pair[1][:-1]


def _joined(ordered: Sequence[Encoded], common: int) -> list[Tree]:
    """Join each pair with those before it if that saves a good part of its ids, what a shorter trunk costs taken off.

    The first ``common`` ids do not count.
    """
    trees: list[Tree] = []
    for pair in ordered:
        row = _row(pair)
        if trees:
            last = trees[-1]
            count, shared = len(last.pairs), shared_length(last.trunk, row)
            saved = shared - common - (count - 1) * (len(last.trunk) - shared)
            if saved > (len(row) - common) // WORTH_JOINING and (count + 1) * len(row) <= BATCH_TOKENS:
                last.pairs.append(pair)
                last.trunk = last.trunk[:shared]
                continue
        trees.append(Tree([pair], row))
    return trees


def run_decoder(
    bundle: Bundle, pairs: Sequence[Encoded], prefixes: Prefixes
) -> Iterator[dict[Encoded, Judged]]:
    """Judge different pairs, in batches of trees of like length."""
    trees = grow_trees(pairs, whole_prompts=bundle.model.config.main.attends == "prefix")
    trees.sort(key=lambda tree: -len(tree.trunk))
    is_whole = _reads_whole(bundle)
    batch: list[Tree] = []
    cost = 0
    for tree in trees:  # elsewhere than in our kernels a trunk may take as many rows as it has branches
        own = tree.size if is_whole else len(tree.trunk) * len(tree.pairs)
        if batch and cost + own > BATCH_TOKENS:
            yield _run_trees(bundle, batch, prefixes)
            batch, cost = [], 0
        batch.append(tree)
        cost += own
    if batch:
        yield _run_trees(bundle, batch, prefixes)


def _run_trees(bundle: Bundle, trees: Sequence[Tree], prefixes: Prefixes) -> dict[Encoded, Judged]:
    _read_beginning(bundle, trees, prefixes)
    held = [prefixes.find((*tree.trunk[: _most_known(tree)], 0)) for tree in trees]
    is_known = any(tokens for _, tokens in held)
    if not is_known and _fit_one_row(bundle, trees):
        found: dict[Encoded, Judged] = {}
        for some in _packed(trees, BATCH_TOKENS if _reads_whole(bundle) else ROW_TOKENS):
            found |= _run_row(bundle, some)
        return found
    return _run_branches(bundle, trees, held)


def _most_known(tree: Tree) -> int:
    """Return how many of a trunk's ids need no states of their own: those before the last id of its shortest prompt."""
    return min(len(tree.trunk), *(len(prompt) for prompt, _ in tree.pairs)) - 1


def _read_beginning(bundle: Bundle, trees: Sequence[Tree], prefixes: Prefixes) -> None:
    """Read what all trunks begin with, as far as it is not held yet, and keep it."""
    common = min(shared_beginning(tree.trunk for tree in trees), *map(_most_known, trees))
    begin = trees[0].trunk[:common]
    if not prefixes.is_on or len(trees) == 1 or common < LEAST:
        return
    held, known = prefixes.find((*begin, 0))
    if common - known < LEAST:
        return
    cache = bundle.model.new_cache(1, common)
    if held is not None:
        held.put(cache, slice(None), known)
        cache.lengths += known
        cache.extent = known
    bundle.model(torch.tensor([begin[known:]], device=bundle.model.device), cache=cache, last=0)
    prefixes.keep(begin, cache, 0)


# --- from copies of a cache ---


def _run_branches(
    bundle: Bundle, trees: Sequence[Tree], held: Sequence[tuple[Held | None, int]]
) -> dict[Encoded, Judged]:
    """Read what is not held of the trunks, then all that is left of the pairs behind copies of what was read."""
    model = bundle.model
    owners, pairs, rests = zip(
        *((at, pair, tree.rest(pair)) for at, tree in enumerate(trees) for pair in tree.pairs), strict=True
    )
    longest = max(map(len, rests))
    known = [tokens for _, tokens in held]
    ids, real = pad([tree.trunk[tokens:] for tree, tokens in zip(trees, known, strict=True)], model.device)
    cache = None
    if longest or any(known):
        cache = model.new_cache(len(trees), max(len(tree.trunk) for tree in trees) + longest + 1)
        _begin_with(cache, held)
    both = seen_both_ways(bundle, ids)
    hidden = model(ids, attention_mask=real, segments=both, cache=cache, last=0).hidden
    states = hidden.flatten(0, 1)  # (trees * seq, dim)
    begun: dict[int, int] = {}  # pair → where its rest begins among the states
    if longest:
        assert cache is not None
        chosen = [at for at, rest in enumerate(rests) if rest]
        more, more_real = pad([rests[at] for at in chosen], model.device)
        behind = _branch(cache, torch.tensor([owners[at] for at in chosen], device=model.device))
        rest = model(more, attention_mask=more_real, cache=behind, last=0).hidden
        begun = {at: states.shape[0] + row * more.shape[1] for row, at in enumerate(chosen)}
        states = torch.cat((states, rest.flatten(0, 1)))
    places = [
        _places(pair, len(trees[owner].trunk), owner * ids.shape[1] - known[owner], begun.get(at, 0))
        for at, (owner, pair) in enumerate(zip(owners, pairs, strict=True))
    ]
    return _judged(bundle, states, places, pairs)


def _begin_with(cache: KVCache, held: Sequence[tuple[Held | None, int]]) -> None:
    """Let the rows of an empty cache begin with what is held."""
    known = [tokens for _, tokens in held]
    for row, (one, tokens) in enumerate(held):
        if one is not None:
            one.put(cache, slice(row, row + 1), tokens)
    cache.lengths += torch.tensor(known, device=cache.lengths.device)
    cache.extent, cache.is_even = max(known), len(set(known)) == 1


def _places(pair: Encoded, trunk: int, start: int, rest: int) -> list[int]:
    """Say which states predict a completion's ids; ``start`` and ``rest`` are those of the trunk's and the rest's first id."""
    prompt, completion = pair
    first = len(prompt) - 1
    return [
        start + place if place < trunk else rest + place - trunk
        for place in range(first, first + len(completion))
    ]


def _branch(cache: KVCache, owners: Tensor) -> KVCache:
    """Give every branch its own copy of its trunk's row."""
    grown = KVCache(0, owners.shape[0], 1, cache.capacity, 1, device=owners.device)
    grown.keys = [keys.index_select(0, owners) for keys in cache.keys]
    grown.values = [values.index_select(0, owners) for values in cache.values]
    grown.lengths = cache.lengths.index_select(0, owners)
    grown.extent, grown.is_even = cache.extent, cache.is_even
    return grown


# --- in one row ---


def _fit_one_row(bundle: Bundle, trees: Sequence[Tree]) -> bool:
    """Say whether every tree fits a row, and that is how they are read best: in one call, without a cache."""
    config = bundle.model.config
    if config.shape != "decoder" or config.main.attends != "causal":
        return False
    if isinstance(bundle.model, QuantizedTransformer):  # products depend a little on what else is in the call
        return False
    if bundle.model.device.type != "cpu" and not any(any(tree.rests) for tree in trees):
        return False  # prompts alone need one call either way, and on a GPU a large one; a processor's caches hold a row
    most = WHOLE_TOKENS if _reads_whole(bundle) else TREE_TOKENS
    return all(tree.size <= most for tree in trees)


def _reads_whole(bundle: Bundle) -> bool:
    """Say whether our kernels read a row: they cut it themselves, and look at no more than its documents."""
    return bundle.model.decoder is not None and native_stack.reads(bundle.model.decoder)


def _packed(trees: Sequence[Tree], tokens: int) -> Iterator[list[Tree]]:
    """Part trees so that each part fills one row of so many tokens, or is one larger tree; nothing is padded."""
    some: list[Tree] = []
    held = 0
    for tree in trees:
        if some and held + tree.size > tokens:
            yield some
            some, held = [], 0
        some.append(tree)
        held += tree.size
    yield some


def _run_row(bundle: Bundle, trees: Sequence[Tree]) -> dict[Encoded, Judged]:
    """Judge some trees in one row: each is a document."""
    ids: list[int] = []
    documents: list[int] = []
    branches: list[int] = []
    places: list[list[int]] = []
    for document, tree in enumerate(trees, 1):
        start = len(ids)
        ids += tree.trunk
        branches += [0] * len(tree.trunk)
        for number, pair in enumerate(tree.pairs, 1):
            places.append(_places(pair, len(tree.trunk), start, len(ids)))
            rest = tree.rest(pair)
            ids += rest
            branches += [number] * len(rest)
        documents += [document] * (len(ids) - start)
    row = torch.tensor([ids, documents, branches], device=bundle.model.device)[:, None]
    mask = row[1] if len(trees) > 1 else None
    hidden = bundle.model(row[0], attention_mask=mask, branches=row[2], last=0).hidden
    return _judged(bundle, hidden[0], places, [pair for tree in trees for pair in tree.pairs])


# --- judging ---


def _judged(
    bundle: Bundle, states: Tensor, places: Sequence[Sequence[int]], pairs: Sequence[Encoded]
) -> dict[Encoded, Judged]:
    """Judge pairs by states ``(states, dim)``, of which ``places`` says which ones predict a completion's ids."""
    wanted = states[torch.tensor([place for some in places for place in some], device=states.device)]
    judged = judge_completions(bundle, wanted, [completion for _, completion in pairs])
    return dict(zip(pairs, judged, strict=True))


def judge_completions(bundle: Bundle, states: Tensor, completions: Sequence[tuple[int, ...]]) -> list[Judged]:
    """Judge whole completions by the states before their ids, one behind the other ``(ids, dim)``."""
    targets = torch.tensor([id for completion in completions for id in completion], device=states.device)
    judged = native_stack.judge(bundle.model, states, targets)
    if judged is None:
        size = max(1, LOGIT_NUMBERS // bundle.model.config.vocab_size)
        parts = [
            _judge_tokens(bundle, *part)
            for part in zip(torch.split(states, size), torch.split(targets, size), strict=True)
        ]
        log_probs, gaps = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
    else:
        log_probs, gaps = judged
    lengths = [len(completion) for completion in completions]
    return [
        (float(logs.sum()), float(gap.min()))
        for logs, gap in zip(torch.split(log_probs, lengths), torch.split(gaps, lengths), strict=True)
    ]


def _judge_tokens(bundle: Bundle, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability and how far its logit stands above the best of the others ``(ids,)``."""
    logits = bundle.model.logits(states).float()  # (ids, vocab)
    own = targets.unsqueeze(1)
    chosen = logits.gather(1, own).squeeze(1)
    whole = logits.logsumexp(1)
    others = logits.scatter_(1, own, -torch.inf).amax(1)
    return chosen - whole, chosen - others
