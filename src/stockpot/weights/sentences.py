"""What sentence-transformers keeps beside a sentence encoder: how hidden states become one vector of a text.

Read and written in its form: ``modules.json`` lists the steps, each with a folder of its own. Steps that we do
not have (a dense layer, other ways of pooling) are refused, since the vectors would not be the model's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stockpot.bundle import Embedding
from stockpot.errors import CheckpointError
from stockpot.weights.family import setting
from stockpot.weights.folder import inside, read_json, read_list

__all__ = ["MODULES", "embedding_files", "read_embedding"]

MODULES = "modules.json"
LIMITS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
POOLING = "1_Pooling/config.json"
POOLS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}  # theirs → ours
FLAGS = {  # as older files spell it: a flag a way, several of which may be set
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_embedding(folder: Path) -> Embedding | None:
    """Read how a sentence encoder makes vectors; None for a folder that says nothing of it.

    Raises:
        CheckpointError: if the files are damaged, lead out of the folder, or ask for what we do not have.
    """
    modules = read_list(folder, MODULES)
    if modules is None:
        return None
    kinds = [_kind(module, folder) for module in modules]
    if kinds[:1] != ["Transformer"] or kinds[1:] not in (["Pooling"], ["Pooling", "Normalize"]):
        raise _refuse(folder / MODULES, f"the steps {', '.join(kinds)[:80] or '(none)'}")
    if _path(modules[0], folder):
        raise _refuse(folder / MODULES, "a network in a folder of its own")
    pooling = read_json(folder, f"{_path(modules[1], folder)}/config.json")
    limits = read_json(folder, LIMITS, missing={})
    if setting(limits, "do_lower_case", bool, default=False):
        raise _refuse(folder / LIMITS, "do_lower_case outside the tokenizer")
    most = setting(limits, "max_seq_length", (int, type(None)))
    prompt = _read_prompt(folder)
    if prompt and not setting(pooling, "include_prompt", bool, default=True):
        raise _refuse(folder / PROMPTS, "a prompt that does not count")
    return Embedding(
        pool=_read_pool(pooling, folder),
        normalise="Normalize" in kinds,
        most_tokens=most if most is None or most > 0 else None,
        prompt=prompt,
    )


def _refuse(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {what}: not supported, so that its vectors would not be the model's.",
        "Use another sentence encoder.",
    )


def _kind(module: Any, folder: Path) -> str:
    name = module.get("type") if isinstance(module, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{folder / MODULES}: a step needs a type.", "Copy the folder again.")
    return name.rpartition(".")[2]


def _path(module: dict[str, Any], folder: Path) -> str:
    path = module.get("path", "")
    if not isinstance(path, str):
        raise CheckpointError(f"{folder / MODULES}: a step's path is {path!r}.", "Copy the folder again.")
    inside(folder, path)
    return path.strip("/")


def _read_pool(values: dict[str, Any], folder: Path) -> Any:
    modes = [mode for flag, mode in FLAGS.items() if values.get(flag) is True] or ["mean"]
    named = values.get("pooling_mode", modes)
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLS:
        raise _refuse(folder / POOLING, f"pooling by {str(modes)[:80]}")
    return POOLS[modes[0]]


def _read_prompt(folder: Path) -> str:
    """Read the text that stands before every other, if there is one."""
    values = read_json(folder, PROMPTS, missing={})
    name = setting(values, "default_prompt_name", (str, type(None)))
    prompts: dict[str, Any] = setting(values, "prompts", dict, default={})
    return "" if name is None else str(setting(prompts, name, str))


def embedding_files(embedding: Embedding, dim: int) -> dict[str, bytes]:
    """Make the files that describe how vectors are made: name → content."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if embedding.normalise else [])]
    paths = ["", POOLING.partition("/")[0], "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    theirs = {ours: mode for mode, ours in POOLS.items()}[embedding.pool]
    pooling = {"word_embedding_dimension": dim} | {flag: mode == theirs for flag, mode in FLAGS.items()}
    limits = {"max_seq_length": embedding.most_tokens, "do_lower_case": False}
    prompts = {"prompts": {"text": embedding.prompt}, "default_prompt_name": "text"}
    contents: dict[str, Any] = {MODULES: modules, POOLING: pooling, LIMITS: limits}
    contents |= {PROMPTS: prompts} if embedding.prompt else {}
    return {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in contents.items()}
