from __future__ import annotations

import errno
import itertools
import signal

import pytest
import torch
from training import new_run, raising_signal, same_weights, settings

from stockpot.errors import CheckpointError, DataError, TrainError
from stockpot.run import Run
from stockpot.train import loop
from stockpot.train.loop import Interrupted, fit
from stockpot.train.resume import read_state, write_state


class Crash(Exception):
    pass


def crashing(loss_fn, call):
    calls = itertools.count(1)

    def wrapped(model, batch):
        if next(calls) == call:
            raise Crash
        return loss_fn(model, batch)

    return wrapped


def validate(model):
    return {"loss": float(model.embed.weight.detach().abs().sum())}


def straight(folder, model, batches, loss_fn, config):
    with new_run(folder, config) as run:
        fit(model, batches, loss_fn, config, run=run, validate=validate)
    return run


def broken_off(folder, make, batches_of, loss_fn, bad_loss, config, error):
    """Train until ``bad_loss`` breaks off, then start again from nothing but the run folder."""
    with pytest.raises(error), new_run(folder, config) as run:
        fit(make(), batches_of(), bad_loss, config, run=run, validate=validate)
    model = make()
    if Run.open(folder).latest_checkpoint():  # then weights and random streams come from there alone
        torch.manual_seed(99)
        for parameter in model.parameters():
            parameter.data.zero_()
    with Run.create(folder, stage="pretrain", recipe={"pretrain": config}, resume=True) as run:
        fit(model, batches_of(), loss_fn, config, run=run, validate=validate, resume=True)
    return run, model


CURVES = ("train/loss", "train/bits_per_byte", "grad_norm", "lr", "tokens", "val/loss")


def assert_same(run, model, other_run, other_model):
    assert same_weights(model, other_model)
    for name in CURVES:
        assert run.series(name) == other_run.series(name), name
    final, other = (read_state(r.latest_checkpoint()[1]) for r in (run, other_run))
    assert final["optimizer"].pop("kind") == other["optimizer"].pop("kind")
    torch.testing.assert_close(final["optimizer"], other["optimizer"], rtol=0, atol=0)
    assert final["data"] == other["data"]
    assert run.model_path.name == other_run.model_path.name


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("behind", [False, True])
def test_ten_straight_steps_are_five_and_five(
    optimizer, dtype, micro_batches, behind, tmp_path, stream, tiny_model, tiny_loss
):
    def make():
        return tiny_model(dropout=0.1)  # the random stream matters too

    config = settings(
        optimizer=optimizer,
        dtype=dtype,
        batch_tokens=64 * micro_batches,
        log_every=3,
        checkpoint_behind=behind,
    )
    model = make()
    run = straight(tmp_path / "a", model, stream(), tiny_loss, config)
    bad = raising_signal(tiny_loss, signal.SIGTERM, 5 * micro_batches)
    resumed, other = broken_off(tmp_path / "b", make, stream, tiny_loss, bad, config, Interrupted)
    assert_same(run, model, resumed, other)


@pytest.mark.parametrize("call", [6, 12, 13, 20, 28, 30])
@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.filterwarnings("ignore:.*has no whole checkpoint:RuntimeWarning")  # a crash before the first
def test_it_does_not_matter_where_training_breaks_off(
    call, how, behind, tmp_path, stream, tiny_model, tiny_loss
):
    config = settings(
        batch_tokens=192, log_every=4, checkpoint_every=4, validate_every=2, checkpoint_behind=behind
    )
    model = tiny_model(dropout=0.1)
    run = straight(tmp_path / "a", model, stream(), tiny_loss, config)
    if how == "signal":
        bad, error = raising_signal(tiny_loss, signal.SIGINT, call), Interrupted
    else:
        bad, error = crashing(tiny_loss, call), Crash
    resumed, other = broken_off(
        tmp_path / "b", lambda: tiny_model(dropout=0.1), stream, tiny_loss, bad, config, error
    )
    if how == "crash" and call < 12:  # before the first checkpoint: it started again
        assert resumed.series("train/loss")[0][0] == 1
    assert_same(run, model, resumed, other)


def test_a_checkpoint_that_cannot_be_written_behind_stops_training(
    tmp_path, stream, tiny_model, tiny_loss, monkeypatch
):
    def full(folder, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = settings(checkpoint_every=4, checkpoint_behind=True)
    monkeypatch.setattr(loop, "write_state", full)
    with pytest.raises(TrainError, match="is full"):
        straight(tmp_path / "a", tiny_model(), stream(), tiny_loss, config)
    assert not list((tmp_path / "a" / "checkpoints").iterdir())  # nothing half written either


def test_batches_that_cannot_tell_their_place_are_read_over(tmp_path, stream, tiny_model, tiny_loss):
    def batches():
        reader = stream()
        return (next(reader) for _ in itertools.count())

    config = settings()
    model = tiny_model()
    run = straight(tmp_path / "a", model, batches(), tiny_loss, config)
    bad = raising_signal(tiny_loss, signal.SIGINT, 5)
    resumed, other = broken_off(tmp_path / "b", tiny_model, batches, tiny_loss, bad, config, Interrupted)
    assert_same(run, model, resumed, other)


def test_fewer_batches_than_the_run_had_read_is_an_error(tmp_path, stream, tiny_model, tiny_loss):
    config = settings()
    five = list(itertools.islice(stream(), 5))
    with pytest.raises(Interrupted), new_run(tmp_path / "r", config) as run:
        fit(tiny_model(), five, raising_signal(tiny_loss, signal.SIGINT, 5), config, run=run)
    with (
        pytest.raises(DataError, match="had read 5 batches"),
        Run.create(tmp_path / "r", stage="pretrain", recipe={"pretrain": config}, resume=True) as run,
    ):
        fit(tiny_model(), five[:4], tiny_loss, config, run=run, resume=True)


def test_a_finished_run_has_nothing_to_resume(tmp_path, stream, tiny_model, tiny_loss):
    config = settings()
    model, other = tiny_model(), tiny_model()
    straight(tmp_path / "r", model, stream(), tiny_loss, config)
    rows = (tmp_path / "r" / "metrics.jsonl").read_text(encoding="utf-8")
    with Run.create(tmp_path / "r", stage="pretrain", recipe={"pretrain": config}, resume=True) as run:
        state = fit(other, stream(), tiny_loss, config, run=run, validate=validate, resume=True)
    assert state.step == 10
    assert same_weights(model, other)
    assert (tmp_path / "r" / "metrics.jsonl").read_text(encoding="utf-8") == rows


def test_another_model_or_optimizer_is_refused(tmp_path, stream, tiny_model, tiny_loss):
    config = settings(steps=2)
    run = straight(tmp_path / "r", tiny_model(), stream(), tiny_loss, config)
    reader = Run.open(run.path)
    with pytest.raises(CheckpointError, match="another model"):
        fit(tiny_model(tied=False), stream(), tiny_loss, config, run=reader, resume=True)
    other = settings(steps=2, optimizer="adamw")
    with pytest.raises(CheckpointError, match="optimizer state"):
        fit(tiny_model(), stream(), tiny_loss, other, run=reader, resume=True)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("it ran",)

    write_state(tmp_path, {"model": Evil()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path)


def test_a_model_without_a_state_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        read_state(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_damaged_state_is_told(damage, tmp_path):
    write_state(tmp_path, {"model": {}})
    (tmp_path / "state" / "training.pt").write_bytes(damage)
    with pytest.raises(CheckpointError):
        read_state(tmp_path)


def test_state_round_trips_as_plain_values(tmp_path):
    content = {"tensor": torch.arange(3), "text": "x", "nested": {"list": [1, 2.5, None, (3, 4)]}}
    write_state(tmp_path, content)
    found = read_state(tmp_path)
    torch.testing.assert_close(found.pop("tensor"), content.pop("tensor"))
    assert found == {"version": 1, **content}
