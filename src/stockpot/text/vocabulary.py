"""The vocabulary section of a GGUF file ↔ tokenizer.json.

llama.cpp knows a fixed list of rules by which a tokenizer splits text, each under a name. A tokenizer can go
there exactly if its own rule is on the list; any other is refused rather than written as something that cuts
text differently. Nothing here opens a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stockpot.errors import TokenizerError
from stockpot.gguf_directory import STRING, Array
from stockpot.text.engine_file import Json, added_token, bpe_model, engine_file
from stockpot.text.kinds import KINDS, Request
from stockpot.text.pieces import LLAMA3_PATTERN

__all__ = ["EXPORTABLE", "read_vocabulary", "turn_end", "write_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)
HERE = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the format's own spelling
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
EXPORTABLE = "byte-bpe; of other makers: GPT-2, Llama 3, Qwen 2 and SmolLM tokenizers"

_TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")

# --- splitting rules: llama.cpp's name ↔ the steps of tokenizer.json ---

_OURS = KINDS["byte-bpe"].pre_tokenizer(Request(0, None))
assert _OURS is not None
_GPT2: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3: Json = json.loads(json.dumps(_OURS))
_LLAMA3["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3_PATTERN
_DIGITS: Json = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]}
RULES: dict[str, Json] = {"qwen2": _OURS, "llama-bpe": _LLAMA3, "gpt-2": _GPT2, "smollm": _DIGITS}
WHOLE_WORDS = ("llama-bpe",)  # a word that is an entry is taken whole, whatever the merges say
# Other names for the same rules; where they stand in llama.cpp: src/llama-vocab.cpp.
ALIASES = {
    "qwen2": ("deepseek-r1-qwen", "megrez", "hunyuan", "stablelm2"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"),
    "gpt-2": ("phi-2", "roberta-bpe", "jina-es", "jina-de", "mpt", "olmo", "mellum", "trillion"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "minerva-7b"),
}
_RULE_OF = {name: rule for rule, names in ALIASES.items() for name in (rule, *names)}


def _simplest(step: Any) -> Any:
    """Drop what does not change the tokens: where offsets are trimmed, a Sequence of one."""
    if isinstance(step, dict):
        kept = {name: _simplest(value) for name, value in step.items() if name != "trim_offsets"}
        inner = kept.get("pretokenizers")
        return inner[0] if isinstance(inner, list) and len(inner) == 1 else kept
    return [_simplest(one) for one in step] if isinstance(step, list) else step


# --- writing ---


def write_vocabulary(
    source: str, roles: Mapping[str, str], size: int, *, adds_bos: bool, template: str | None
) -> dict[str, Any]:
    """Describe a tokenizer as the metadata of a GGUF file.

    Args:
        source: the text of tokenizer.json.
        roles: special tokens by what they are for.
        size: number of ids of the model; ids without a token get placeholders.
        adds_bos: whether a text begins with the begin-of-sequence id.
        template: Jinja source of the chat template.

    Raises:
        TokenizerError: if llama.cpp knows no rule that cuts text as this tokenizer does.
    """
    spec: Json = json.loads(source)
    rule = _rule_of(spec)
    model, added = spec["model"], spec["added_tokens"]
    tokens = {number: (token, NORMAL) for token, number in model["vocab"].items()}
    for one in added:
        tokens[one["id"]] = (one["content"], CONTROL if one["special"] else USER_DEFINED)
    listed = [tokens.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    ids = {token: number for number, (token, _) in enumerate(listed)}
    found = {
        "model": "gpt2",
        "pre": rule,
        "tokens": [token for token, _ in listed],
        "token_type": [kind for _, kind in listed],
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        "add_space_prefix": False,
        "add_bos_token": adds_bos,
    }
    found |= {key: ids[roles[role]] for role, key in ROLE_KEYS.items() if roles.get(role) in ids}
    if "eos_token_id" not in found:
        raise TokenizerError(
            "This tokenizer names no end-of-document token, which a GGUF file needs.",
            "Name one in tokenizer_config.json (eos_token).",
        )
    ends = [ids[token] for token in _TURN_ENDS if token in ids]
    if ends:
        found["eot_token_id"] = ends[0]
    values = {HERE + key: value for key, value in found.items()}
    return values if template is None else values | {TEMPLATE: _hide_blocks(template)}


def _rule_of(spec: Json) -> str:
    """Return llama.cpp's name for how this tokenizer splits text."""
    model = spec["model"]
    steps = _simplest(spec["pre_tokenizer"])
    known = [name for name, rule in RULES.items() if _simplest(rule) == steps]
    plain = (
        model["type"] == "BPE"
        and model["merges"]
        and not (model.get("dropout") or model.get("byte_fallback") or model.get("unk_token"))
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        # Qwen's tokenizers put text into Unicode's composed form first; llama.cpp leaves it as it is.
        and spec["normalizer"] in (None, {"type": "NFC"})
    )
    if not plain or not known or bool(model.get("ignore_merges")) != (known[0] in WHOLE_WORDS):
        raise TokenizerError(
            "This tokenizer cannot be written to a GGUF file: llama.cpp has no rule that cuts text the same way.",
            f"Kinds that can: {EXPORTABLE}. Save a folder instead.",
        )
    return known[0]


# ``generation`` blocks mark what the assistant wrote; only stockpot and transformers know them. As comments
# they are invisible to every other program, and come back when the file is read here.
_BLOCKS = tuple(
    (f"{{%{left}{word}{right}%}}", f"{{#{left}{word}{right}#}}")
    for word in (" generation ", " endgeneration ")
    for left in ("", "-")
    for right in ("", "-")
)


def _hide_blocks(template: str) -> str:
    for block, comment in _BLOCKS:
        template = template.replace(block, comment)
    return template


def _show_blocks(template: str) -> str:
    for block, comment in _BLOCKS:
        template = template.replace(comment, block)
    return template


# --- reading ---


def read_vocabulary(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the text of tokenizer.json for a GGUF file's metadata, and what tokenizer_config.json would say.

    Raises:
        TokenizerError: if the section is missing, contradicts itself, or describes a tokenizer that is not
            read.
    """
    model = values.get(f"{HERE}model")
    if model != "gpt2":
        raise TokenizerError(
            f"{HERE}model is {model!r}, a tokenizer that is not read.", "Known: gpt2 (byte-level BPE)."
        )
    name = values.get(f"{HERE}pre")
    if not isinstance(name, str) or name not in _RULE_OF:
        raise TokenizerError(
            f"{HERE}pre is {name!r}, a rule of splitting text that is not read.",
            f"Known: {', '.join(_RULE_OF)}.",
        )
    tokens = _texts(values, "tokens")
    kinds = _numbers(values, "token_type", len(tokens))
    source = _source(tokens, kinds, _texts(values, "merges"), _RULE_OF[name])
    return source, _config(values, tokens)


def turn_end(values: Mapping[str, Any], size: int) -> int | None:
    """Return the id that ends a turn of a conversation, if the file names one."""
    found = values.get(f"{HERE}eot_token_id")
    return found if type(found) is int and 0 <= found < size else None


def _texts(values: Mapping[str, Any], key: str) -> list[str]:
    found = values.get(HERE + key)
    if not isinstance(found, Array) or found.kind != STRING or not len(found):
        raise TokenizerError(f"{HERE}{key} is missing, or no list of texts.")
    try:
        return found.texts()
    except UnicodeDecodeError:
        raise TokenizerError(f"{HERE}{key} holds a text that is not UTF-8.") from None


def _numbers(values: Mapping[str, Any], key: str, count: int) -> Sequence[Any]:
    found = values.get(HERE + key)
    if found is None:
        return (NORMAL,) * count
    if not isinstance(found, Array) or found.kind == STRING or len(found) != count:
        raise TokenizerError(f"{HERE}{key} is no list of {count:,} numbers.")
    return found.numbers()


def _source(tokens: list[str], kinds: Sequence[int], merges: list[str], rule: str) -> str:
    """Put a tokenizer.json together."""
    listed = {
        number: (token, kind)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if not (kind == UNUSED and token == f"[PAD{number}]")
    }
    added = [
        added_token(number, token, special=kind != USER_DEFINED)
        for number, (token, kind) in listed.items()
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    # Added tokens behind all others stay outside the model, as we train them; elsewhere the library needs them
    # inside to keep their ids.
    last = max((number for number, (_, kind) in listed.items() if kind in (NORMAL, UNUSED)), default=-1)
    outside = {one["content"] for one in added if one["id"] > last}
    vocabulary = {token: number for number, (token, _) in listed.items() if token not in outside}
    if len(vocabulary) + len(outside) != len(listed):
        raise TokenizerError(f"{HERE}tokens names a token twice.")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise TokenizerError(f"{HERE}tokens leaves ids without a token.")
    model = bpe_model(vocabulary, _merges(merges, vocabulary), ignore_merges=rule in WHOLE_WORDS)
    decoder = KINDS["byte-bpe"].decoder
    spec = engine_file(model, added=added, pre_tokenizer=RULES[rule], decoder=decoder)
    return json.dumps(spec, ensure_ascii=False)


def _merges(merges: list[str], vocabulary: Mapping[str, int]) -> list[list[str]]:
    if len(merges) > 4 * len(vocabulary):
        raise TokenizerError(f"{HERE}merges lists {len(merges):,} for {len(vocabulary):,} tokens.")
    pairs = [merge.split(" ") for merge in merges]
    made = ["".join(pair) for pair in pairs]
    if any(len(pair) != 2 for pair in pairs) or not vocabulary.keys() >= set(made):
        wrong = next(
            m
            for m, pair, one in zip(merges, pairs, made, strict=True)
            if len(pair) != 2 or one not in vocabulary
        )
        raise TokenizerError(f"{HERE}merges holds {wrong[:80]!r}, which makes no known token.")
    return pairs


def _config(values: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"add_bos_token": values.get(f"{HERE}add_bos_token") is True}
    for role, key in ROLE_KEYS.items():
        number = values.get(HERE + key)
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise TokenizerError(f"{HERE}{key} is {number!r}; there are {len(tokens):,} tokens.")
        config[f"{role}_token"] = tokens[number]
    template = values.get(TEMPLATE)
    if isinstance(template, str):
        config["chat_template"] = _show_blocks(template)
    return config
