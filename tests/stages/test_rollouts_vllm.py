"""Answers written by vLLM: what it is given and what comes back.

Most tests run against `StandIn`, which has the documented interface of vLLM 0.32 as far as we use it and computes with our own
engine; it is not vLLM. The last ones run vLLM itself where it is installed, on a GPU or as its build for CPUs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError, ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling
from stockpot.generate.together import complete
from stockpot.model.adapters import LoRA, attach, has_adapters, merged_copy
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.ppo import GRPOConfig, PPOConfig, grpo, ppo
from stockpot.train.rollouts_vllm import VllmConfig, VllmWriter
from stockpot.weights.handing import stored_weights
from stockpot.weights.store import load, load_model, save

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


class StandIn:
    """`vllm.LLM` as far as it is used: a folder without weights, weights by name, ids in, ids and log-probabilities out."""

    made: list[StandIn]

    def __init__(self, tokenizer, **settings):
        self.tokenizer, self.settings, self.model = tokenizer, settings, None
        self.reloads, self.resets = 0, 0
        folder = Path(settings["model"])
        assert not list(folder.glob("*.safetensors"))
        assert settings["load_format"] == "dummy"
        assert json.loads((folder / "config.json").read_text())["model_type"] in ("llama", "qwen3")
        self.config = (folder / "config.json").read_bytes()
        StandIn.made.append(self)

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert method == "reload_weights"
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_bytes(self.config)
            given = {name: tensor.clone() for name, tensor in kwargs["weights_iterator"]}
            save_file(given, Path(folder) / "model.safetensors")
            self.model = load_model(folder, device="cpu")  # knows names and forms from a folder alone
        self.reloads += 1
        return [None]

    def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        self.resets += 1
        return True

    def generate(self, prompts, sampling_params=None, use_tqdm=True):
        bundle = Bundle(self.model, self.tokenizer)
        requests = [
            Request(
                list(prompt["prompt_token_ids"]),
                Sampling(
                    max_tokens=how.max_tokens,
                    temperature=how.temperature,
                    seed=how.seed,
                    logprobs=how.logprobs,
                ),
            )
            for prompt, how in zip(prompts, sampling_params, strict=True)
        ]
        made = complete(Engine(bundle), requests)
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=list(one.ids),
                        logprobs=[
                            {id: SimpleNamespace(logprob=value)}
                            for id, value in zip(one.ids, one.log_probs, strict=True)
                        ],
                        finish_reason=one.finish_reason,
                        stop_reason=None,
                    )
                ]
            )
            for one in made
        ]


@pytest.fixture
def stand_in(monkeypatch, tiny_base):
    """Let ``import vllm`` find the stand-in."""
    module = ModuleType("vllm")
    tokenizer = load(tiny_base).tokenizer
    module.LLM = lambda **settings: StandIn(tokenizer, **settings)
    module.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    StandIn.made = []
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return StandIn.made


@pytest.fixture
def bundle(tiny_base):
    return load(tiny_base, device="cpu")


def requests(temperature=0.0):
    return [
        Request(ids, Sampling(max_tokens=8, temperature=temperature, seed=number))
        for number, ids in enumerate(PROMPTS)
    ]


def test_answers_are_those_of_the_policy(stand_in, bundle):
    write = VllmWriter(bundle, VllmConfig(), torch.float32)
    assert not stand_in  # not before it is needed
    got, wanted = write(requests()), complete(Engine(bundle), requests())
    assert [one.ids for one in got] == [one.ids for one in wanted]
    assert [one.text for one in got] == [one.text for one in wanted]
    assert [one.finish_reason for one in got] == [one.finish_reason for one in wanted]
    assert all(len(one.log_probs) == len(one.ids) for one in got)
    settings = stand_in[0].settings
    assert (settings["dtype"], settings["max_model_len"]) == ("float32", bundle.context)
    assert settings["skip_tokenizer_init"]


def test_each_phase_writes_with_the_weights_of_now(stand_in, bundle):
    """Adapters are merged into what is handed over, and the policy keeps them apart."""
    attach(bundle.model, LoRA(rank=2))
    write = VllmWriter(bundle, VllmConfig(), torch.float32)
    before = write(requests())
    torch.manual_seed(1)
    for name, parameter in bundle.model.named_parameters():
        if "lora_up" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    after = write(requests())
    assert [one.ids for one in after] != [one.ids for one in before]
    copy = Bundle(merged_copy(bundle.model, torch.float32), bundle.tokenizer)
    assert [one.ids for one in after] == [one.ids for one in complete(Engine(copy), requests())]
    assert has_adapters(bundle.model)
    assert len(stand_in) == 1
    assert (stand_in[0].reloads, stand_in[0].resets) == (2, 2)


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_weights_are_those_of_a_folder(bundle, tmp_path, kind):
    from safetensors.torch import load_file

    attach(bundle.model, LoRA(rank=2, frozen=kind))
    torch.nn.init.normal_(next(p for n, p in bundle.model.named_parameters() if "lora_up" in n))
    written = load_file(save(tmp_path / "whole", bundle) / "model.safetensors")
    handed = dict(stored_weights(bundle.model, torch.float32, family=bundle.family))
    assert torch.equal(handed.pop("lm_head.weight"), handed["model.embed_tokens.weight"])  # tied, given twice
    assert handed.keys() == written.keys()
    assert all(torch.equal(handed[name], written[name]) for name in written)


def test_grpo_and_ppo_learn_from_what_it_writes(stand_in, tiny_base, tmp_path):
    common = {
        "model": str(tiny_base), "data": "village:prompts", "engine": "vllm", "prompts": 2, "samples": 2,
        "max_tokens": 6, "loop": {"steps": 3, "lr": 1e-2, "dtype": "float32", "checkpoint_every": 2}, "kl_coef": 0.1,
    }  # fmt: skip
    reward = lambda replies: [float(one.tokens) for one in replies]  # noqa: E731
    run = grpo(GRPOConfig(**common), out=tmp_path / "grpo", reward=reward)
    assert stand_in[0].reloads == 3
    # What wrote and the policy are the same model here: sampled and computed log-probabilities differ by rounding.
    assert all(abs(value) < 1e-4 for _, value in run.series("train/writer_kl"))
    run = ppo(PPOConfig(**common, minibatches=1), out=tmp_path / "ppo", reward=reward)
    assert run.manifest["status"] == "done"


def test_without_vllm_it_says_what_to_install(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = GRPOConfig(model=str(tiny_base), data="village:prompts", engine="vllm", loop={"steps": 1})
    with pytest.raises(ConfigError, match=r"engine = 'vllm' needs vLLM") as refused:
        grpo(config, out=tmp_path / "run", reward=lambda replies: [0.0] * len(replies))
    assert "stockpot[vllm]" in str(refused.value.todo)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = GRPOConfig(model=str(tiny_base), data="village:prompts", engine="vllm")
    with pytest.raises(ConfigError, match="writes in one process"):
        grpo(config, out=tmp_path / "run", reward=lambda replies: [0.0] * len(replies))


def test_a_shape_that_only_we_know_is_refused(stand_in, bundle):
    model = Transformer(decoder(layers=1, dim=16, heads=2, context=32, vocab_size=400, position="alibi"))
    with pytest.raises(CheckpointError, match="No other program knows"):
        VllmWriter(Bundle(model, bundle.tokenizer), VllmConfig(), torch.float32)


# --- vLLM itself ---


@pytest.fixture
def real(monkeypatch):
    """Give vLLM where it is installed; its build for CPUs takes a core each and half of the memory unless it is told."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_vllm_itself_writes_what_the_engine_writes(real, bundle):
    """Twice: with the weights it was started with, and with others and an adapter on a base of 4 bits."""
    torch.manual_seed(0)
    shape = decoder(layers=2, dim=128, heads=2, kv_heads=1, context=128, vocab_size=400, zero_init=False)
    bundle = Bundle(Transformer(shape).eval(), bundle.tokenizer)
    write = VllmWriter(bundle, VllmConfig(eager=True, together=4), torch.float32)
    got, wanted = write(requests()), complete(Engine(bundle), requests())
    assert [one.ids for one in got] == [one.ids for one in wanted]
    attach(bundle.model, LoRA(rank=2, frozen="nf4"))
    for name, parameter in bundle.model.named_parameters():
        if "lora_up" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    told = [replace(one, sampling=one.sampling.model_copy(update={"logprobs": 0})) for one in requests()]
    copy = Bundle(merged_copy(bundle.model, torch.float32), bundle.tokenizer)
    again, wanted = write(requests()), complete(Engine(copy), told)
    assert [one.ids for one in again] == [one.ids for one in wanted] != [one.ids for one in got]
    for one, other in zip(again, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
