from __future__ import annotations

import itertools
import json
import math
import signal

import pytest
import torch
from torch import nn
from training import new_run, raising_signal, same_weights, settings

from stockpot import device as machine
from stockpot.data.batch import Batch
from stockpot.errors import DataError, TrainError
from stockpot.model import halves
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.train.loop import Interrupted, fit
from stockpot.train.losses import Loss, cross_entropy, next_token_loss


def poisoned(loss_fn, *calls):
    """Wrap a loss so that some of its calls (from 1) return NaN."""
    count = itertools.count(1)

    def wrapped(model, batch):
        loss = loss_fn(model, batch)
        return Loss(loss.total * math.nan, loss.count, loss.metrics) if next(count) in calls else loss

    return wrapped


def wide_model():
    """Make a model whose matrices are large enough for products in halves."""
    torch.manual_seed(0)
    return Transformer(decoder(layers=1, dim=256, heads=4, context=128, vocab_size=40))


# --- learning ---


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tiny_model_overfits_one_batch(optimizer, dtype, stream, tiny_model, tiny_loss):
    batch, events = next(stream()), []
    config = settings(steps=60, optimizer=optimizer, dtype=dtype)
    fit(tiny_model(), itertools.repeat(batch), tiny_loss, config, progress=events.append)
    assert events[0]["loss"] == pytest.approx(math.log(40), abs=0.2)  # it starts knowing nothing
    assert events[-1]["loss"] < 0.1


def test_weights_stay_float32_while_products_run_in_bfloat16(stream, tiny_model, tiny_loss):
    model, seen = tiny_model(), []
    model.decoder.layers[0].ffn.down.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    fit(model, stream(), tiny_loss, settings(steps=1, dtype="bfloat16"))
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.skipif(not halves.are_here(), reason="this processor has no vectors of halves, or no compiler")
@pytest.mark.parametrize(("dtype", "is_used"), [(None, True), ("float32", False)])
def test_products_are_in_halves_where_no_type_is_asked_for_and_bfloat16_is_slow(dtype, is_used, monkeypatch):
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: False)
    model, seen, multiply = wide_model(), [], halves.multiply

    def watched(x, weight):
        seen.append(x.shape)
        return multiply(x, weight)

    monkeypatch.setattr(halves, "multiply", watched)
    ids = torch.arange(128)[None] % 40
    fit(model, [Batch(ids, ids.roll(-1))], next_token_loss, settings(steps=1, dtype=dtype, batch_tokens=128))
    assert bool(seen) == is_used
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_users_own_module_and_loss_are_enough(stream):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40))
    events = []
    fit(
        model,
        stream(),
        lambda module, batch: cross_entropy(module(batch.ids), batch.labels),
        settings(steps=80, lr=3e-2),
        progress=events.append,
    )
    assert events[-1]["loss"] < 0.2 < 3 < events[0]["loss"]


def one_step(model, batches, loss_fn, batch_tokens):
    # eps is large so that AdamW's first step does not turn rounding into the sign of a gradient
    config = settings(steps=1, optimizer="adamw", eps=1e-3, batch_tokens=batch_tokens, schedule="constant")
    fit(model, batches, loss_fn, config)
    return model


def test_micro_batches_give_the_update_of_the_whole(stream, tiny_model, tiny_loss):
    whole = next(stream(rows=6))
    whole.labels[0, :13] = -100  # rows that count differently: a mean of means would differ
    whole.labels[3, 2:] = -100
    parts = [Batch(whole.ids[i : i + 1], whole.labels[i : i + 1]) for i in range(6)]
    at_once = one_step(tiny_model(), [whole], tiny_loss, 96)
    in_parts = one_step(tiny_model(), parts, tiny_loss, 96)
    start = tiny_model()
    for one, other, before in zip(
        at_once.parameters(), in_parts.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # float32 sums in another order
        assert not torch.equal(one, before) or before.ndim == 1 or not before.any()


def test_padding_cannot_change_the_update(stream, tiny_model, tiny_loss):
    batch = next(stream(width=10))
    padded = Batch(
        nn.functional.pad(batch.ids, (0, 5), value=7),
        nn.functional.pad(batch.labels, (0, 5), value=-100),
        nn.functional.pad(torch.ones_like(batch.ids, dtype=torch.bool), (0, 5)),
    )
    alone = one_step(tiny_model(), [batch], tiny_loss, 40)
    beside = one_step(tiny_model(), [padded], tiny_loss, 40)
    for one, other in zip(alone.parameters(), beside.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_step_without_a_counted_label_is_no_disaster(stream, tiny_model, tiny_loss):
    empty = next(stream())
    empty.labels[:] = -100
    batches = itertools.chain([empty], stream())
    state = fit(tiny_model(), batches, tiny_loss, settings(steps=3))
    assert state.step == 3


# --- what a run folder gets ---


def test_metrics_are_logged_with_their_names(tmp_path, stream, tiny_model, tiny_loss):
    config = settings(log_every=4)
    with new_run(tmp_path / "r", config) as run:
        fit(tiny_model(), stream(), tiny_loss, config, run=run, validate=lambda model: {"loss": 1.5})
    steps = [step for step, _ in run.series("train/loss")]
    assert steps == [1, 4, 8, 10]
    for name in ("train/bits_per_byte", "train/accuracy", "lr", "grad_norm", "mfu", "time_left_s", "time_s"):
        assert [step for step, _ in run.series(name)] == steps
    assert run.last("tokens") == 640
    assert run.last("tokens_per_s") > 0
    assert run.last("stall_s") > 0
    assert run.last("val/loss") == 1.5
    assert run.last("train/bits_per_byte") == pytest.approx(run.last("train/loss") / math.log(2) / 2)


def test_a_log_line_holds_the_mean_since_the_last(stream, tiny_model, tiny_loss):
    every, fourth = [], []
    fit(tiny_model(), stream(), tiny_loss, settings(steps=5), progress=every.append)
    fit(tiny_model(), stream(), tiny_loss, settings(steps=5, log_every=5), progress=fourth.append)
    assert fourth[0]["loss"] == every[0]["loss"]
    assert fourth[1]["loss"] == pytest.approx(sum(event["loss"] for event in every[1:]) / 4, rel=1e-6)


def test_the_model_is_the_best_checkpoint_and_old_ones_go(tmp_path, stream, tiny_model, tiny_loss):
    values = iter([3.0, 1.0, 2.0, 2.5, 2.2])
    config = settings(validate_every=2, checkpoint_every=2, keep=2)
    with new_run(tmp_path / "r", config) as run:
        state = fit(
            tiny_model(), stream(), tiny_loss, config, run=run, validate=lambda model: {"loss": next(values)}
        )
    assert (state.best, state.best_step) == (1.0, 4)
    assert run.model_path.name == "step-000004"
    names = sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000008", "step-000010"]


def test_without_validation_the_model_is_the_last_checkpoint(tmp_path, stream, tiny_model, tiny_loss):
    config = settings(keep=1)
    with new_run(tmp_path / "r", config) as run:
        fit(tiny_model(), stream(), tiny_loss, config, run=run)
    assert run.model_path.name == "step-000010"
    # The model's own checkpoint is never deleted before the next one is whole: one more than asked for.
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) == 2


def test_the_stage_writes_the_model_folder(tmp_path, stream, tiny_model, tiny_loss):
    config = settings(steps=1)

    def save(folder):
        (folder / "config.json").write_text("{}", encoding="utf-8")

    with new_run(tmp_path / "r", config) as run:
        fit(tiny_model(), stream(), tiny_loss, config, run=run, save=save)
    assert (run.model_path / "config.json").is_file()


def test_validation_sees_the_model_in_evaluation_mode_and_leaves_it_training(stream, tiny_model, tiny_loss):
    modes = []
    model = tiny_model()

    def validate(seen):
        modes.append(seen.training)
        return {}

    fit(model, stream(), tiny_loss, settings(steps=2), validate=validate)
    assert modes == [False, False]
    assert model.training


# --- data ---


def test_training_ends_with_the_data(stream, tiny_model, tiny_loss):
    batches = list(itertools.islice(stream(), 3))
    assert fit(tiny_model(), batches, tiny_loss, settings()).step == 3


def test_no_data_is_an_error(tiny_model, tiny_loss):
    with pytest.raises(DataError, match="no batch"):
        fit(tiny_model(), [], tiny_loss, settings())


# --- stopping ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(number, tmp_path, stream, tiny_model, tiny_loss):
    config, before = settings(), signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, new_run(tmp_path / "r", config) as run:
        fit(tiny_model(), stream(), raising_signal(tiny_loss, number, 4), config, run=run)
    assert caught.value.step == 4  # the step under way is finished
    assert caught.value.checkpoint == run.latest_checkpoint()[1]
    assert Run.open(tmp_path / "r").status == "interrupted"
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_at_once(stream, tiny_model, tiny_loss):
    once = raising_signal(tiny_loss, signal.SIGINT, 4)
    with pytest.raises(KeyboardInterrupt, match="second"):
        fit(tiny_model(), stream(), raising_signal(once, signal.SIGINT, 4), settings())


def test_nan_stops_before_it_reaches_a_weight(tmp_path, stream, tiny_model, tiny_loss):
    config = settings(checkpoint_every=2, batch_tokens=128)
    model = tiny_model()
    with pytest.raises(TrainError) as caught, new_run(tmp_path / "r", config) as run:
        fit(model, stream(), poisoned(tiny_loss, 10), config, run=run)
    assert "Step 5" in caught.value.what
    assert "micro-batch 2 of 2" in caught.value.what
    assert "step-000004" in caught.value.todo
    assert all(p.isfinite().all() for p in model.parameters())
    blamed = json.loads((tmp_path / "r" / "bad-batch.json").read_text(encoding="utf-8"))
    reader = stream()
    reader.load_state_dict({"place": 9})
    assert blamed["ids"] == next(reader).ids.tolist()
    assert blamed["position"]["source"] == {"place": 8}  # where the step began
    assert Run.open(tmp_path / "r").status == "failed"


def test_an_infinite_gradient_behind_a_finite_loss_is_named(stream, tiny_model):
    def loss_fn(seen, batch):
        gain = seen.decoder.norm.weight
        return Loss((gain - gain.detach()).sqrt().sum(), 1.0)  # the slope of a root at 0 is infinite

    with pytest.raises(TrainError, match=r"gradient is not \(decoder.norm.weight\)"):
        fit(tiny_model(), stream(), loss_fn, settings())


def test_a_bad_step_can_be_skipped(stream, tiny_model, tiny_loss):
    model, other = tiny_model(), tiny_model()
    fit(model, stream(), poisoned(tiny_loss, 2), settings(steps=2, on_bad_step="skip", schedule="constant"))
    fit(other, stream(), tiny_loss, settings(steps=1, schedule="constant"))
    assert same_weights(model, other)


def test_skipping_for_ever_is_not_training(stream, tiny_model, tiny_loss):
    config = settings(steps=100, on_bad_step="skip")
    with pytest.raises(TrainError, match="Step 12"):
        fit(tiny_model(), stream(), poisoned(tiny_loss, *range(3, 100)), config)


def test_divergence_is_told(stream, tiny_model, tiny_loss):
    def growing(model, batch):
        loss = tiny_loss(model, batch)
        growing.factor *= 2
        scaled = {"loss": (loss.total.detach() * growing.factor, loss.count)}
        return Loss(loss.total, loss.count, scaled)

    growing.factor = 1
    with pytest.raises(TrainError, match="diverges"):
        fit(tiny_model(), stream(), growing, settings())


@pytest.mark.slow
def test_compiled_layers_learn_the_same(stream, tiny_model, tiny_loss, unchecked):
    plain, compiled = [], []
    fit(tiny_model(), stream(), tiny_loss, settings(steps=3), progress=plain.append)
    fit(tiny_model(), stream(), tiny_loss, settings(steps=3, compile=True), progress=compiled.append)
    for one, other in zip(plain, compiled, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)  # fused kernels round differently
