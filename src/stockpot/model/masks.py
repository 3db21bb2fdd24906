"""Which tokens may see which.

Decides visibility from positions, documents and windows, as one boolean tensor for all layers of a kind. It
knows nothing of scores, heads or caches.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["branch_positions", "document_positions", "documents_of", "real_positions", "visible"]

Documents = Int[Tensor, "batch seq"]


def documents_of(attention_mask: Tensor) -> Tensor:
    """Read an attention mask as document numbers: a boolean mask is document 1 and padding 0."""
    return attention_mask.long() if attention_mask.dtype == torch.bool else attention_mask


def visible(
    queries: Int[Tensor, "rows seq"],
    keys: Int[Tensor, "rows2 keys"],
    *,
    causal: bool,
    window: int | None,
    documents: tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch keys"]] | None = None,
    both_ways: tuple[Bool[Tensor, "batch seq"], Bool[Tensor, "batch keys"]] | None = None,
    branches: tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch keys"]] | None = None,
) -> Bool[Tensor, "rows3 1 seq keys"] | None:
    """Say which keys each query sees; ``None`` when it sees all.

    Padding (document 0) sees padding, so that no row of attention is ever empty.

    Args:
        queries: positions of the queries; one row stands for the whole batch.
        keys: positions of the keys.
        causal: hide keys after the query.
        window: hide keys ``window`` or more positions away.
        documents: numbers of the queries' and the keys' documents; other documents are hidden.
        both_ways: queries and keys of a prefix that is seen in both directions, whatever ``causal`` says.
        branches: numbers of the queries' and the keys' branches, 0 = trunk; other branches are hidden.
    """
    ahead = keys[:, None, :] - queries[:, :, None]  # (rows, seq, keys)
    seen: Tensor | None = None
    if causal:
        seen = ahead <= 0
        if both_ways is not None:
            seen = seen | (both_ways[0][:, :, None] & both_ways[1][:, None, :])
    if window is not None:
        near = ahead.abs() < window
        seen = near if seen is None else seen & near
    if documents is not None:
        same = documents[0][:, :, None] == documents[1][:, None, :]
        seen = same if seen is None else seen & same
    if branches is not None:
        mine, theirs = branches[0][:, :, None], branches[1][:, None, :]
        own = (theirs == mine) | (theirs == 0)
        seen = own if seen is None else seen & own
    return None if seen is None else seen[:, None]


def real_positions(real: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Count the real tokens of each row from 0; padding takes the number before it, or 0."""
    return (real.cumsum(1) - 1).clamp(min=0)


def document_positions(documents: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Count the tokens of each document from 0, wherever it starts in its row."""
    index = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values


def branch_positions(
    documents: Documents | None, branches: Int[Tensor, "batch seq"]
) -> Int[Tensor, "batch seq"]:
    """Count the tokens of each document where it branches: every branch goes on from the end of the trunk.

    Padding (document 0) stands at 0.

    Args:
        documents: numbers of the documents; None: a row is one.
        branches: 0 for a document's trunk, which comes first, then 1, 2 … for its branches.
    """
    whole = torch.ones_like(branches) if documents is None else documents
    index = torch.arange(branches.shape[1], device=branches.device)
    new_document = torch.ones_like(whole, dtype=torch.bool)
    new_document[:, 1:] = whole[:, 1:] != whole[:, :-1]
    new_branch = new_document.clone()
    new_branch[:, 1:] |= branches[:, 1:] != branches[:, :-1]
    start = torch.where(new_document, index, 0).cummax(1).values
    branch_start = torch.where(new_branch, index, 0).cummax(1).values
    # Where the trunk ends; a document without one begins with its branches.
    end = torch.maximum(torch.where(branches == 0, index + 1, 0).cummax(1).values, start)
    place = torch.where(branches == 0, index - start, end - start + index - branch_start)
    return torch.where(whole == 0, 0, place)
