"""Scaling laws: found again where they are known, with intervals that hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

import stockpot as sp
from stockpot.errors import ConfigError, DataError
from stockpot.stages.laws import _PAIRS, Law, Point, _solve, fit_law, resampled
from stockpot.stages.sweep import SweepConfig, products, sweep

TRUE = Law(
    floor=1.69, size_factor=406.4, alpha=0.34, data_factor=410.7, beta=0.28
)  # Hoffmann et al. 2022, eq. 10


def points(noise, seed=0):
    draw = np.random.default_rng(seed)
    return [
        Point(n, d, TRUE.loss(n, d) * float(np.exp(noise * draw.normal())))
        for n in (1e7, 3e7, 1e8, 3e8)
        for d in (2e8, 1e9, 5e9)
    ]


def test_a_known_law_is_found_again():
    found = fit_law(points(0.0))
    for name in ("floor", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.02), name
    assert found.loss(1e9, 2e10) == pytest.approx(TRUE.loss(1e9, 2e10), rel=1e-3)


def test_elimination_side_by_side_is_least_squares_with_nothing_negative():
    """Against numpy, on the columns that stay."""
    draw = np.random.default_rng(0)
    design, weights = draw.random((50, 12, 3)) + 0.1, draw.random((50, 12))
    design[:25, :, 2] = 10 - 4 * design[:25, :, 2]  # large columns: some factors would be negative
    pairs = np.stack([design[..., c] * design[..., d] for c, d in _PAIRS], -1)
    found = _solve(weights, design, pairs)
    assert (found[:25] == 0).any() and (found >= 0).all()
    for one, columns, weight in zip(found, design, weights, strict=True):
        left = (one > 0).nonzero()[0]
        root = np.sqrt(weight)
        fitted = np.linalg.lstsq(columns[:, left] * root[:, None], root, rcond=None)[0]
        assert one[left] == pytest.approx(fitted, rel=1e-6)


def test_one_run_that_went_wrong_does_not_bend_the_law():
    seen = points(0.0)
    seen[5] = Point(seen[5].parameters, seen[5].tokens, seen[5].loss * 1.2)
    assert fit_law(seen).loss(1e9, 2e10) == pytest.approx(TRUE.loss(1e9, 2e10), rel=0.01)


def test_the_interval_of_a_prediction_holds_the_truth():
    truth, inside = TRUE.loss(1e9, 2e10), 0
    for seed in range(10):
        said = [law.loss(1e9, 2e10) for law in resampled(points(0.002, seed), draws=20, seed=seed)]
        low, high = np.quantile(said, (0.025, 0.975))
        inside += low <= truth <= high
    assert inside >= 7


def test_the_best_size_is_where_the_loss_is_least():
    flops = 1e20
    best = TRUE.best_size(flops)
    sizes = best * np.array([0.5, 0.9, 1.0, 1.1, 2.0])
    losses = [TRUE.loss(n, flops / 6 / n) for n in sizes]
    assert int(np.argmin(losses)) == 2


def test_too_few_runs_settle_nothing():
    with pytest.raises(DataError, match="do not settle a law of five numbers"):
        fit_law(points(0.0)[:5])


def test_a_sweep_trains_fits_checks_and_takes_up_what_is_there(pantry, tmp_path):
    config = SweepConfig(
        data=str(pantry / "corpus.jsonl"),
        tokenizer=str(pantry / "tok"),
        sizes=("1x16", "1x32", "1x48"),
        tokens=(512, 1024, 2048),
        kept="1x64:2048",
        context=32,
        loop=sp.LoopConfig(batch_tokens=256, dtype="float32"),
        val_tokens=256,
        rates=(0.03, 0.02, 0.015, 0.01),
        draws=20,
    )
    assert config.settings("1x16", 512).loop.lr == 0.03
    assert config.settings("1x64", 2048).loop.lr == 0.01
    found = sweep(config, out=tmp_path / "s")
    assert len(found.points) == 9
    assert found.kept is not None
    assert found.kept[0].parameters == products(config.settings("1x64", 2048).model)
    assert (tmp_path / "s" / "runs.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (tmp_path / "s" / "isoflop.svg").exists() == found.law.trades
    assert "predicted" in (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text(encoding="utf-8"))["points"]) == 10
    stamp = (tmp_path / "s" / "runs" / "1x16-512" / "manifest.json").stat().st_mtime_ns
    assert sweep(config, out=tmp_path / "s").points == found.points
    assert (tmp_path / "s" / "runs" / "1x16-512" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="1x16-512 is a run of another sweep"):
        sweep(config.model_copy(update={"seed": 1}), out=tmp_path / "s")


def test_a_sweep_needs_a_tokenizer_and_shapes(tmp_path):
    with pytest.raises(ConfigError, match="one tokenizer for all runs"):
        sweep(SweepConfig(), out=tmp_path / "s")
    with pytest.raises(ConfigError, match="not LAYERSxWIDTH"):
        SweepConfig(sizes=("2", "3", "4"))
    with pytest.raises(ConfigError, match="2x64:100' is not LAYERSxWIDTH"):
        SweepConfig(sizes=("2x64:100", "3x64", "4x64"))
    with pytest.raises(ConfigError, match="2x64 with 250,000 tokens is there twice"):
        SweepConfig(kept="2x64:250000")  # a point of the fit checks nothing
    with pytest.raises(ConfigError, match="rates has 2 numbers; there are 4 sizes"):
        SweepConfig(rates=(0.01, 0.02))
