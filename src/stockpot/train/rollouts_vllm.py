"""Answers written by vLLM, in this process, with the weights as the policy has them now.

vLLM is an extra; it is imported when the first answer is asked for. It is started once, without weights, and given the policy's
before each phase, adapters merged, under the names of a model folder. Requests and completions are the engine's own, so that
nothing else knows who wrote.

The interface is vLLM's: ``LLM`` with ``collective_rpc("reload_weights", …)``, which all its workers have since 0.32.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.errors import ConfigError
from stockpot.generate.request import Completion, Request, Sampling
from stockpot.train.resume import random_state, set_random_state
from stockpot.weights.handing import save_outline, stored_weights

__all__ = ["VllmConfig", "VllmWriter"]

ONE_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"  # "0": workers are in this process, and take tensors

RENDERER = "vllm.renderers.base"


class VllmConfig(Settings):
    """How vLLM shares the machine with training."""

    memory_share: float = Field(
        0.3, gt=0, lt=1, description="of the GPU's memory, for weights and what was read"
    )
    together: int = Field(256, ge=1, description="answers that are written at the same time, at most")
    eager: bool = Field(
        False, description="compute step by step, without CUDA graphs: starts sooner, writes slower"
    )


class VllmWriter:
    """Writes answers with vLLM.

    Args:
        bundle: the policy with its text side; its model is read before each phase.
        config: memory and speed.
        dtype: of vLLM's weights and products.

    Raises:
        ConfigError: if vLLM is not installed.
        CheckpointError: if vLLM cannot know a model of this shape.
    """

    def __init__(self, bundle: Bundle, config: VllmConfig, dtype: torch.dtype) -> None:
        self.bundle, self.config, self.dtype = bundle, config, dtype
        self._vllm = _import()
        self._model: Any = None
        with tempfile.TemporaryDirectory() as folder:  # to refuse a shape before any work
            save_outline(folder, bundle.model, family=bundle.family)

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests, which must be ids, in their order; each answer has the log-probabilities it was drawn with."""
        self._hand_over()
        prompts = [{"prompt_token_ids": _ids(one)} for one in requests]
        drawing = [self._drawing(one.sampling) for one in requests]
        outputs = self._model.generate(prompts, drawing, use_tqdm=False)
        return [
            self._completion(request, output.outputs[0])
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _hand_over(self) -> None:
        """Start vLLM if it has not been, and give it the weights of now."""
        if self._model is None:
            device = self.bundle.model.device
            before = random_state(device)
            with tempfile.TemporaryDirectory() as folder:
                self._model = self._start(save_outline(folder, self.bundle.model, family=self.bundle.family))
            set_random_state(before, device)  # which it seeds anew
        weights = stored_weights(self.bundle.model, self.dtype, family=self.bundle.family)
        self._model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._model.reset_prefix_cache()  # what was read with the weights before

    def _start(self, folder: Path) -> Any:
        os.environ[ONE_PROCESS] = "0"
        logging.getLogger(RENDERER).setLevel(logging.ERROR)  # it misses the tokenizer, which we have
        return self._vllm.LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            generation_config="vllm",
            dtype=str(self.dtype).removeprefix("torch."),
            max_model_len=self.bundle.context,
            max_num_seqs=self.config.together,
            gpu_memory_utilization=self.config.memory_share,
            enforce_eager=self.config.eager,
            logprobs_mode="processed_logprobs",  # of what was drawn from, temperature included
        )

    def _drawing(self, sampling: Sampling) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop_token_ids=sorted(self.bundle.stop_ids),
            ignore_eos=True,  # the ids above are all that ends an answer
            detokenize=False,
            logprobs=0,  # of the drawn id alone
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        ids = tuple(int(one) for one in output.token_ids)
        ended = output.finish_reason == "stop"
        text = self.bundle.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special=True)
        known = output.logprobs or ()
        log_probs = tuple(float(found[id].logprob) for id, found in zip(ids, known, strict=True))
        return Completion(text, ids, "stop" if ended else "length", len(_ids(request)), log_probs)


def _ids(request: Request) -> list[int]:
    assert isinstance(request.prompt, list)
    return [one for one in request.prompt if isinstance(one, int)]


def _import() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"engine = 'vllm' needs vLLM, which is not here ({error}).",
            "Install it: pip install 'stockpot[vllm]'",
        ) from None
    return vllm
