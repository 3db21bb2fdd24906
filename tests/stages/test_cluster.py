"""Plans for machines that are not here."""

from __future__ import annotations

import math
import re

import pytest

from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.cluster import PlanConfig, checkpoint_interval, plan
from stockpot.stages.machines import devices_of


def test_parameters_and_arithmetic_are_those_of_the_model():
    model = decoder(layers=2, dim=64, heads=2, context=64, vocab_size=100)
    found = plan(
        PlanConfig(model=model, context=64, tokens="1M", devices="1xH100", batch_tokens=4096, mfu=0.5)
    )
    assert found.parameters == sum(p.numel() for p in Transformer(model).parameters())
    assert found.tokens == 1e6
    assert found.flops == pytest.approx(1e6 * model.flops_per_token())
    assert found.tokens_per_s == pytest.approx(0.5 * 989e12 / model.flops_per_token())
    assert found.days * 86_400 == pytest.approx(1e6 / found.tokens_per_s)


def test_a_model_is_split_only_where_it_must_be():
    small = plan(PlanConfig(size=12, devices="8xH100"))
    large = plan(PlanConfig(size=40, devices="64xA100-40", batch_tokens=1 << 20))
    huge = plan(PlanConfig(size=96, devices="1xL4", batch_tokens=1 << 16))
    assert small.layout == "ddp"
    assert large.layout is not None
    assert large.layout.startswith("fsdp")
    assert large.share.total < 40 * 2**30
    assert huge.layout is None
    assert "does not fit" in str(huge.facts()["layout"])


def test_all_layouts_are_laid_out_and_one_can_be_asked_for():
    found = plan(PlanConfig(size=24, devices="8xH100"))
    assert [one.layout for one in found.options][:3] == ["ddp", "fsdp", "fsdp, recompute"]
    assert "tensor 4 x data 2, recompute" in [one.layout for one in found.options]
    assert (found.layout, found.because) == ("ddp", "the simplest that fits")
    how = {"kind": "tensor", "layer_processes": 2, "recompute": True}
    asked = plan(PlanConfig(size=24, devices="8xH100", parallel=how))
    (only,) = asked.options
    assert (asked.layout, asked.because) == ("tensor 2 x data 4, recompute", "as asked")
    assert only.traffic_share == asked.traffic_share > found.traffic_share  # layers' sums
    assert asked.tokens_per_s == pytest.approx(found.tokens_per_s * 3 / 4)
    assert asked.share.activations < found.share.activations
    with pytest.raises(ConfigError, match="over 8 processes, but 24 heads, 12 of them with keys"):
        plan(PlanConfig(size=24, devices="8xH100", parallel={"kind": "tensor"}))


def test_layers_are_computed_side_by_side_where_there_are_more_devices_than_rows():
    found = plan(PlanConfig(size=24, devices="8xH100", batch_tokens=4 * 2048))
    assert found.layout is not None
    assert found.layout.startswith("tensor 2 x data 4")
    assert (found.rows, found.accumulate) == (1, 1)


def test_a_simpler_layout_is_passed_over_only_for_a_much_faster_one():
    found = plan(PlanConfig(size=64, devices="1024xH100", batch_tokens=1 << 23))
    chosen = next(one for one in found.options if one.layout == found.layout)
    able = [one for one in found.options if one.fits]
    assert chosen.time_s <= 1.1 * min(one.time_s for one in able)
    assert all(one.time_s > 1.1 * min(one.time_s for one in able) for one in able[: able.index(chosen)])
    assert "times as long" in found.because


def test_narrow_moments_take_half_of_what_adamw_remembers():
    wide, narrow = (
        plan(PlanConfig(size=12, devices="1xH100", optimizer="adamw", moments=kind))
        for kind in ("float32", "bfloat16")
    )
    assert narrow.share.optimizer == wide.share.optimizer / 2 == 4 * narrow.parameters
    assert narrow.checkpoint_gb == pytest.approx(wide.checkpoint_gb * 8 / 12)


def test_splitting_over_more_devices_takes_less_of_each():
    shares = [
        plan(PlanConfig(size=48, devices=f"{n}xA100-40", batch_tokens=1 << 21)).share for n in (32, 64, 128)
    ]
    assert shares[0].optimizer > shares[1].optimizer > shares[2].optimizer


def test_the_interval_between_checkpoints_is_youngs_where_writing_is_quick():
    write, failure = 10.0, 100_000.0
    assert checkpoint_interval(write, failure) == pytest.approx(math.sqrt(2 * write * failure), rel=0.01)

    def lost(interval):  # a share of the time: Daly 2006, eq. 20, without the restart
        return failure * (math.exp((interval + write) / failure) - 1) / interval

    slow = 3000.0
    best = checkpoint_interval(slow, failure)
    write = slow
    assert lost(best) <= min(lost(best * 0.8), lost(best * 1.25))


def test_failures_cost_more_on_more_devices():
    few, many = (
        plan(PlanConfig(size=32, tokens="2T", devices=f"{n}xH100", batch_tokens=1 << 24)) for n in (64, 4096)
    )
    assert few.failure_days == pytest.approx(64 * many.failure_days)
    assert many.effective < few.effective < 1
    assert many.interval_s < few.interval_s


def test_days_are_written_out():
    facts = plan(PlanConfig(size=4, tokens="10M", devices="cpu")).facts()
    assert re.fullmatch(r"one in \d,\d{3} days", facts["failures"])
    assert "e+" not in facts["time"]


@pytest.mark.parametrize("text", ["8xP100", "0xH100", "many", "8 H100"])
def test_unknown_devices_are_refused(text):
    with pytest.raises(ConfigError, match="Example: 8xH100"):
        devices_of(text)


def test_a_step_needs_a_row_on_each_device():
    with pytest.raises(
        ConfigError, match="less than a row of 2048 tokens for each of 512 devices"
    ):  # nor of 64 hosts
        plan(PlanConfig(size=12, devices="512xH100", batch_tokens=4096))


def test_a_measured_run_stands_beside_the_plan(pantry, tmp_path):
    import stockpot as sp

    loop = sp.LoopConfig(steps=3, batch_tokens=256, log_every=1, dtype="float32")
    config = sp.PretrainConfig(
        data=str(pantry / "corpus.jsonl"),
        tokenizer=str(pantry / "tok"),
        size=1,
        context=32,
        val_tokens=64,
        loop=loop,
    )
    run = sp.pretrain(config, out=tmp_path / "run")
    (check,) = plan(PlanConfig(size=1, devices="8xH100", mfu=0.25), runs=[run.path]).checks
    assert check.parameters == check.planned_parameters
    assert check.planned_tokens_per_s == pytest.approx(check.tokens_per_s * 0.25 / check.mfu)
    (run.path / "metrics.jsonl").write_text('{"step": 1, "tokens": 256}\n')
    with pytest.raises(CheckpointError, match="says nothing of its speed"):
        plan(PlanConfig(size=1), runs=[run.path])
