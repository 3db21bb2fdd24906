"""Attention within documents on a GPU, by torch's FlexAttention: blocks that no query sees are never computed.

Decides which pairs of positions see each other from the numbers of documents and branches alone; there is no mask as large as
the attention. It knows no heads and no scores.

Source: Dong et al. 2024, arXiv:2412.05496.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # a second's worth of torch, which only GPUs need
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["attend_in_documents", "document_blocks", "sees"]

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sees(documents: Tensor | None, branches: Tensor | None, *, causal: bool, window: int | None) -> Sees:
    """Return what says of (row, head, query, key) whether the query sees the key; as ``masks.visible`` for whole rows.

    Args:
        documents: numbers ``(batch, seq)``, 0 = padding, which sees padding.
        branches: numbers ``(batch, seq)``, 0 = trunk.
        causal: hide later keys.
        window: hide keys that far away; without branches only.
    """
    # torch counts the arguments of what it is given: a plain function of four
    return lambda row, head, query, key: _seen(row, query, key, documents, branches, causal, window)


def _seen(
    row: Tensor,
    query: Tensor,
    key: Tensor,
    documents: Tensor | None,
    branches: Tensor | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    found = query >= key if causal else query >= 0
    if window is not None:
        found = found & ((query - key).abs() < window)
    if documents is not None:
        found = found & (documents[row, query] == documents[row, key])
    if branches is not None:
        theirs = branches[row, key]
        found = found & ((theirs == branches[row, query]) | (theirs == 0))
    return found


def document_blocks(
    documents: Tensor, branches: Tensor | None, *, causal: bool, window: int | None
) -> BlockMask:
    """Find the blocks that are seen at all, once for all layers of a kind."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, seq = documents.shape
    rule = sees(documents, branches, causal=causal, window=window)
    return create_block_mask(rule, batch, None, seq, seq, device=documents.device)


def attend_in_documents(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: BlockMask, *, scale: float
) -> Tensor:
    """Average values ``(batch, kv_heads, seq, head_dim)`` by how well queries and keys match, where they are seen."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = flex_attention if torch.compiler.is_compiling() else _compiled()
    grouped = queries.shape[1] != keys.shape[1]
    found: Tensor = attend(queries, keys, values, block_mask=blocks, scale=scale, enable_gqa=grouped)
    return found


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
