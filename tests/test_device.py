from __future__ import annotations

import random

import pytest
import torch

from stockpot import device as machine
from stockpot.errors import ConfigError

CPU = torch.device("cpu")


def test_the_cpu_can_always_be_asked_for():
    assert machine.pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_cpu_is_chosen_and_cuda_is_refused():
    assert machine.pick_device() == CPU
    with pytest.raises(ConfigError, match="0 CUDA devices"):
        machine.pick_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "tpu", "meta", "cuda:x", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError):
        machine.pick_device(name)


def test_dtypes_by_name_and_by_speed(monkeypatch):
    assert machine.pick_dtype(CPU, "float32") == torch.float32
    assert machine.pick_dtype(CPU, "bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="float16"):
        machine.pick_dtype(CPU, "float16")
    for is_fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(machine, "has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        assert machine.pick_dtype(CPU) == expected


def test_instructions_for_bfloat16_count_only_where_they_are_faster(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for slow, is_fast in ((torch.float32, True), (torch.bfloat16, False)):
        clock = [0.0]
        monkeypatch.setattr(machine.time, "perf_counter", lambda clock=clock: clock[0])

        def multiply(left, right, clock=clock, slow=slow):
            clock[0] += 2.0 if left.dtype == slow else 1.0
            return left

        monkeypatch.setattr(torch, "mm", multiply)
        machine._bf16_outruns_float32.cache_clear()
        assert machine.has_fast_bf16(CPU) == is_fast
    machine._bf16_outruns_float32.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not machine.has_fast_bf16(CPU)


def test_a_seed_decides_every_stream():
    def draw():
        machine.seed_everything(7)
        return random.random(), torch.rand(3).tolist()

    assert draw() == draw()


def test_torchrun_says_which_process_this_is(monkeypatch):
    assert machine.this_world() == machine.World(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    place = machine.this_world()
    assert place == machine.World(5, 8, 1)
    assert not place.is_first


def test_measuring_the_peak_leaves_the_random_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = machine.peak_flops(CPU, torch.float32)
    assert torch.equal(torch.rand(2), expected)
    assert first > 0
    assert machine.peak_flops(CPU, torch.float32) == first  # measured once


def test_threads_can_be_left_or_set():
    before = machine.set_threads()
    assert machine.set_threads(1) == 1
    assert machine.set_threads(before) == before


def test_the_machine_is_described_in_plain_values():
    facts = machine.describe(CPU)
    assert facts["device"] == "cpu"
    assert facts["cores"] >= 1
    assert all(isinstance(value, (str, int, bool)) for value in facts.values())


def test_large_pages_change_no_number_and_small_tensors_are_left_alone():
    large = machine.on_large_pages(torch.empty(machine.LARGE_BLOCK // 4 + 1000))
    large.fill_(2.0)
    assert float(large.double().sum()) == 2.0 * large.numel()
    small = torch.ones(10)
    assert machine.on_large_pages(small) is small
    assert torch.equal(small, torch.ones(10))


@pytest.mark.parametrize(
    ("maker", "registers", "slow"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_mkl_is_slow_where_wide_registers_are_not_intels(maker, registers, slow, monkeypatch):
    monkeypatch.setattr(machine, "_cpu_fact", lambda _: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: registers)
    assert machine.mkl_is_slow.__wrapped__() is (slow and torch.backends.mkl.is_available())
