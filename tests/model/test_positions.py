"""Tables, angles, slopes and buckets."""

from __future__ import annotations

import math

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.model.config import RopeScaling, StackConfig, decoder
from stockpot.model.masks import document_positions, real_positions, visible
from stockpot.model.positions import (
    PositionTable,
    RelativeBias,
    alibi_slopes,
    rotary_table,
    rotate,
    sinusoidal_table,
)
from stockpot.model.transformer import Transformer

LIKE = torch.zeros(1)


def angles(config: StackConfig, length: int, scaling: RopeScaling | None = None) -> torch.Tensor:
    return rotary_table(config, config.rope_theta, scaling).upto(length, LIKE)[:length]


def test_rotation_by_hand() -> None:
    config = StackConfig(dim=2, heads=1)  # one pair, frequency 1: position p is turned by p radians
    x = torch.tensor([3.0, 4.0]).expand(1, 3, 1, 2)
    turned = rotate(x, angles(config, 3)[None, :, None])[0, :, 0]
    for p in range(3):
        cos, sin = math.cos(p), math.sin(p)
        torch.testing.assert_close(turned[p], torch.tensor([3 * cos - 4 * sin, 4 * cos + 3 * sin]))


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    config, far = StackConfig(dim=64, heads=4), 3000
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 4, 16), torch.randn(1, 1, 4, 16)
    table = angles(config, far + 50)

    def score(p: int, q: int) -> torch.Tensor:
        return (rotate(query, table[None, p : p + 1, None]) * rotate(key, table[None, q : q + 1, None])).sum(
            -1
        )

    torch.testing.assert_close(
        score(7, 2), score(far + 7, far + 2), atol=1e-3, rtol=1e-3
    )  # sin of big numbers
    norm = rotate(query, table[None, far : far + 1, None]).norm(dim=-1)
    torch.testing.assert_close(norm, query.norm(dim=-1))


def test_partial_rotation_leaves_the_rest_alone() -> None:
    config = StackConfig(dim=32, heads=2, rope_fraction=0.25)
    x = torch.randn(1, 5, 2, 16)
    turned = rotate(x, angles(config, 5)[None, :, None])
    torch.testing.assert_close(turned[..., 4:], x[..., 4:])
    assert not torch.allclose(turned[:, 1:, :, :4], x[:, 1:, :, :4])


def test_linear_stretching_reads_positions_slower() -> None:
    config = StackConfig(dim=32, heads=2)
    slow = angles(config, 9, RopeScaling(kind="linear", factor=4.0))
    torch.testing.assert_close(slow[8], angles(config, 9)[2])


@pytest.mark.parametrize("high", [1.0, 0.5])
def test_llama3s_span_of_frequencies_is_checked_where_it_is_written(high: float) -> None:
    with pytest.raises(ConfigError, match=rf"low_freq_factor = 1\.0 must be below high_freq_factor = {high}"):
        RopeScaling(kind="llama3", factor=8.0, high_freq_factor=high)
    assert RopeScaling(factor=8.0, high_freq_factor=high).factor == 8.0, "which no other kind reads"


def test_a_table_grows_when_asked_and_keeps_its_rows() -> None:
    built: list[int] = []

    def build(length: int) -> torch.Tensor:
        built.append(length)
        return torch.arange(length).float()[:, None]

    table = PositionTable(build)
    first = table.upto(3, LIKE)
    assert table.upto(200, LIKE) is first
    assert torch.equal(table.upto(1000, LIKE)[:256], first)
    assert built == [256, 1024]
    assert table.upto(4, LIKE, torch.bfloat16).dtype == torch.bfloat16
    assert table.rows((2, 5), LIKE, 5, torch.float32).flatten().tolist() == [2, 3, 4]
    assert table.rows(torch.tensor([[5, 0]]), LIKE, 6, torch.float32).flatten().tolist() == [5, 0]


def test_waves_by_hand() -> None:
    table = sinusoidal_table(4).upto(3, LIKE)
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    expected = [math.sin(2), math.cos(2), math.sin(2 / 100), math.cos(2 / 100)]
    torch.testing.assert_close(table[2], torch.tensor(expected))


@pytest.mark.parametrize(
    ("heads", "first", "last"), [(8, 1 / 2, 1 / 256), (16, 2**-0.5, 1 / 256), (4, 1 / 4, 1 / 256)]
)
def test_slopes_are_the_paper_s(heads: int, first: float, last: float) -> None:
    slopes = alibi_slopes(heads)
    assert slopes[0].item() == pytest.approx(first)
    assert slopes[-1].item() == pytest.approx(last)
    ratios = slopes[1:] / slopes[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def test_slopes_exist_for_any_number_of_heads() -> None:
    for heads in range(1, 40):
        slopes = alibi_slopes(heads)
        assert slopes.shape == (heads,)
        assert len(set(slopes.tolist())) == heads


def test_buckets_are_exact_near_and_shared_far() -> None:
    one_way = RelativeBias(
        StackConfig(dim=32, heads=4, position="relative", relative_buckets=8, relative_distance=16)
    )
    distances = -torch.arange(20)[None, None]
    buckets = one_way.bucket(distances)[0, 0].tolist()
    assert buckets[:4] == [0, 1, 2, 3]
    assert buckets == sorted(buckets)
    assert set(buckets[16:]) == {7}
    assert one_way.bucket(-distances)[0, 0].tolist() == [0] * 20
    config = StackConfig(dim=32, heads=4, attends="bidirectional", position="relative", relative_buckets=8)
    both_ways = RelativeBias(config)
    behind, ahead = both_ways.bucket(distances)[0, 0, 1:], both_ways.bucket(-distances)[0, 0, 1:]
    assert torch.equal(ahead, behind + 4)


def test_a_long_context_is_only_a_limit_for_learned_positions() -> None:
    ids = torch.zeros(1, 40, dtype=torch.long)
    for position in ("none", "sinusoidal", "rope", "alibi", "relative"):
        model = Transformer(decoder(layers=1, dim=16, heads=2, context=8, vocab_size=5, position=position))
        assert bool(model(ids).logits.isfinite().all())


def test_positions_count_real_tokens_and_restart_at_documents() -> None:
    real = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    assert real_positions(real).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    documents = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [0, 3, 3, 1, 1, 1, 1]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 0, 1, 2, 3]]


def test_visibility_by_hand() -> None:
    places = torch.arange(4)[None]
    assert visible(places, places, causal=False, window=None) is None
    causal = visible(places, places, causal=True, window=2)
    assert causal is not None
    assert causal[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    numbers = torch.tensor([[1, 1, 2, 0]])
    apart = visible(places, places, causal=True, window=None, documents=(numbers, numbers))
    assert apart is not None
    assert apart[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
