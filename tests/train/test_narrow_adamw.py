"""AdamW with means in bfloat16: as good as in float32, half the memory, exact to resume."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from stockpot.model import compiled
from stockpot.train import narrow_adamw
from stockpot.train.optim import OptimConfig, Optimizer


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiled, "suits", lambda *_: False)
    elif not compiled.suits(torch.zeros(1)):
        pytest.skip("no compiler here")
    return request.param


def config(moments: str = "bfloat16", **more) -> OptimConfig:
    plain = {"lr": 1e-2, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1, "eps": 1e-8}
    return OptimConfig(optimizer="adamw", moments=moments, **(plain | more))


def trained(optim: OptimConfig, steps: int) -> tuple[nn.Linear, Optimizer, float]:
    """Fit a line to noise-free data in random batches; returns also the error that is left."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), torch.randn(256, 64)
    wanted = x @ torch.randn(64, 64) * 0.3
    optimizer = Optimizer(model, optim, steps)
    for step in range(steps):
        rows = torch.randint(0, 256, (32,))
        optimizer.clear()
        (model(x[rows]) - wanted[rows]).square().mean().backward()
        optimizer.step(step)
    return model, optimizer, float((model(x) - wanted).detach().square().mean())


def test_learning_goes_as_far_as_with_wide_means():
    _, _, narrow = trained(config(weight_decay=0.0, beta2=0.999), 200)
    _, _, wide = trained(config("float32", weight_decay=0.0, beta2=0.999), 200)
    assert narrow == pytest.approx(wide, rel=0.05)  # rounding moves it by less than 1 %


def test_the_first_step_is_torchs_but_for_rounding():
    narrow, _, _ = trained(config(), 1)
    wide, _, _ = trained(config("float32"), 1)
    torch.testing.assert_close(narrow.weight, wide.weight, rtol=1e-5, atol=1e-7)


def test_small_changes_of_a_mean_add_up():
    """At beta2 = 0.999 a mean square shrinks by 0.1 % a step, which bfloat16 cannot tell from nothing (it knows 0.4 %)."""
    model = nn.Linear(256, 256, bias=False)
    optimizer = Optimizer(model, config(beta2=0.999), 1000)
    own = optimizer._state_of("weight")
    own["exp_avg_sq"].fill_(1.0)
    model.weight.grad = torch.zeros_like(model.weight)
    for step in range(700):
        optimizer.step(step)
    assert float(own["exp_avg_sq"].float().mean()) == pytest.approx(0.999**700, rel=0.01)


def test_means_take_two_bytes_a_number_and_torchs_generators_are_left_alone():
    _, optimizer, _ = trained(config(), 1)
    state = optimizer.state_dict()["adamw"]
    assert {one[name].dtype for one in state.values() for name in narrow_adamw.MEANS} == {torch.bfloat16}
    before = torch.get_rng_state()
    optimizer.step(1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("by_name", [False, True])
def test_a_saved_state_goes_on_bit_for_bit(by_name):
    torch.manual_seed(1)
    gradients = [torch.randn(64, 64) for _ in range(6)]

    def stepped(model: nn.Linear, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            model.weight.grad, model.bias.grad = gradients[step], gradients[step][0]
            optimizer.step(step)

    whole, optimizer, _ = trained(config(), 3)
    halved, saved, _ = trained(config(), 3)
    fresh = Optimizer(halved, config(), 10)
    if by_name:
        fresh.load_named({name: one.clone() for name, one in saved.named_state().items()})
    else:
        fresh.load_state_dict(saved.state_dict())
    stepped(whole, optimizer, range(3, 6))
    stepped(halved, fresh, range(3, 6))
    assert torch.equal(whole.weight, halved.weight)
    assert torch.equal(optimizer._state_of("weight")["exp_avg"], fresh._state_of("weight")["exp_avg"])


@pytest.mark.parametrize("way", ["kernel"], indirect=True)  # the other way is taken inside
def test_both_ways_round_alike(way, monkeypatch):
    _, kernel, _ = trained(config(), 3)
    monkeypatch.setattr(compiled, "suits", lambda *_: False)
    _, plain, _ = trained(config(), 3)
    for name in narrow_adamw.MEANS:
        ours, theirs = (one._state_of("weight")[name].float() for one in (kernel, plain))
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-12)  # one place apart at most,
        assert (ours != theirs).float().mean() < 0.01  # and that where products differ in the last place


@pytest.mark.parametrize("cuts", [(0, 7, 64), (0, 32, 64), (0, 0, 1, 64)])  # also a part without rows
def test_parts_of_a_parameter_are_rounded_as_the_whole_is(cuts, monkeypatch):
    """So that two processes that split a model differ from one as little as their sums do."""
    monkeypatch.setattr(narrow_adamw, "PIECE", 100)  # the noise starts anew within rows and parts
    torch.manual_seed(2)
    start, gradients = torch.randn(64, 24), torch.randn(5, 64, 24)
    facts = {"lr": 0.01, "weight_decay": 0.1}

    def stepped(first: int, last: int) -> list[torch.Tensor]:
        part = nn.Parameter(start[first:last].clone())
        group = {"params": [part], "begins": [first * 24], **facts}
        optimizer = narrow_adamw.NarrowAdamW([group], betas=(0.9, 0.95), eps=1e-8)
        for gradient in gradients:
            part.grad = gradient[first:last].clone()
            optimizer.step()
        return [part.detach(), *(optimizer.state[part][name] for name in narrow_adamw.MEANS)]

    whole = stepped(0, 64)
    parts = [stepped(first, last) for first, last in itertools.pairwise(cuts)]
    for one, cut in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(cut))


def test_a_parameter_may_lie_in_memory_in_another_order():
    """A transposed weight is learned as the same weight that lies row by row."""
    torch.manual_seed(3)
    start, gradients = torch.randn(24, 16), torch.randn(4, 24, 16)

    def stepped(part: nn.Parameter) -> list[torch.Tensor]:
        groups = [{"params": [part], "lr": 0.01, "weight_decay": 0.1}]
        optimizer = narrow_adamw.NarrowAdamW(groups, betas=(0.9, 0.95), eps=1e-8)
        for gradient in gradients:
            part.grad = gradient.clone()
            optimizer.step()
        return [part.detach(), *(optimizer.state[part][name] for name in narrow_adamw.MEANS)]

    turned = nn.Parameter(start.T.contiguous().T)
    assert not turned.is_contiguous()
    for one, other in zip(stepped(nn.Parameter(start.clone())), stepped(turned), strict=True):
        assert torch.equal(one, other)
