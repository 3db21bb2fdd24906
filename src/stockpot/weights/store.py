"""Read and write models, with all that belongs to them or the network alone.

A model folder is a Hugging Face folder. A shape that ``transformers`` knows is written as the family it
belongs to, so that it opens there unchanged; others carry our own ``model_type``. Nothing that is read can
run code, and nothing is allocated before names, shapes and sizes have been checked against each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.device import pick_device
from stockpot.durable import is_sealed, verify
from stockpot.errors import CheckpointError, ConfigError
from stockpot.gguf_directory import is_gguf
from stockpot.model.adapters import has_adapters, merged_weights
from stockpot.model.config import ModelConfig
from stockpot.model.outline import outline
from stockpot.model.quantized import QuantizedTransformer
from stockpot.model.quantized import quantize as quantized
from stockpot.model.sight import sight_of
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.formats import IN_FOLDERS
from stockpot.text.framing import with_frame
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.adapter import adapter_files, add_adapter, base_of, is_adapter
from stockpot.weights.card import model_card
from stockpot.weights.families import FAMILIES, NATIVE, family_of
from stockpot.weights.family import Family, Part, short
from stockpot.weights.folder import INDEX, find_folder, inside, read_json, weight_files
from stockpot.weights.gguf.reading import architecture_of, generation_of, load_gguf, load_gguf_model
from stockpot.weights.gguf.writing import save_gguf
from stockpot.weights.known import find_known
from stockpot.weights.sentences import embedding_files, read_embedding
from stockpot.weights.shards import index_of, most_bytes, plan
from stockpot.weights.sight import LORA, OWN_BASE, is_sight, save_sight
from stockpot.weights.soft import is_soft, refuse_soft, soft_files, wear
from stockpot.weights.spare import refuse_other_vocabulary
from stockpot.weights.tensors import Shelf, check_parts, read_parts, write_parts
from stockpot.weights.writing import Content, write_all

__all__ = [
    "convert",
    "load",
    "load_model",
    "save",
    "save_adapter",
    "save_model",
]

TOKENIZER_FILES = (
    *IN_FOLDERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
TRAINING = ("init_std", "zero_init")  # settings that no other family knows and only training needs


def load(
    ref: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
) -> Bundle:
    """Open a model with its tokenizer, chat template and generation defaults.

    An adapter is merged into its base. What the adapter's folder lacks of the text side comes from the base.

    Args:
        ref: a run, a checkpoint, a Hugging Face folder, an adapter folder, a GGUF file, a hub id, or a known name
            (``smollm2``).
        device: where to put it; None takes an accelerator if there is one, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None keeps what the file has (packed numbers of a
            GGUF file become float32).
        quantize: ``"int8"`` or ``"int4"``: round the weights for fast writing on a CPU; such a model cannot be
            trained or saved.
        adapters: adapters trained on this model: LoRA is merged, a soft prompt stands before all that is encoded.

    Raises:
        CheckpointError: if it is missing, damaged, unsafe or of a kind we do not read.
        TokenizerError: if its tokenizer cannot be read.
        ConfigError: if ``quantize`` is unknown or meets a device other than the CPU.
    """
    if quantize is not None:
        bits, file = _bits(quantize, device), find_known(ref) or ref
        if not adapters and is_gguf(file):
            return load_gguf(file, device=torch.device("cpu"), dtype=_dtype(dtype), bits=bits)
        bundle = load(ref, device="cpu", dtype=dtype, adapters=adapters)
        refuse_soft(bundle.model, "run with rounded weights")
        return replace(bundle, model=quantized(bundle.model, bits))
    if adapters:
        return wear(load(ref, device=device, dtype=dtype), [find_folder(one) for one in adapters])
    ref = find_known(ref) or ref
    if is_gguf(ref):
        return load_gguf(ref, device=pick_device(device), dtype=_dtype(dtype))
    folder = find_folder(ref)
    if is_soft(folder) or is_sight(folder):
        return load(base_of(folder), device=device, dtype=dtype, adapters=[folder])
    model = load_model(folder, device=device, dtype=dtype)
    text = folder
    while is_adapter(text) and not any((text / name).exists() for name in IN_FOLDERS):
        text = base_of(text)
    for name in TOKENIZER_FILES:
        inside(text, name)
    tokenizer = Tokenizer.load(text)
    refuse_other_vocabulary(tokenizer, model.config.vocab_size, folder)
    template = None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer)
    return Bundle(
        model,
        tokenizer,
        template,
        generation_of(text, tokenizer) if text.is_file() else _read_generation(text),
        folder,
        family=_model_type(folder),
        embedding=read_embedding(text),
    )


def load_model(
    ref: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Transformer:
    """Open the network of a model folder alone; arguments and errors as in :func:`load`."""
    ref = find_known(ref) or ref
    if is_gguf(ref):
        return load_gguf_model(ref, device=pick_device(device), dtype=_dtype(dtype))
    folder, place, kind = find_folder(ref), pick_device(device), _dtype(dtype)
    if is_adapter(folder):
        return _adapted(folder, place, kind)
    values = read_json(folder, "config.json")
    family = _family(values, folder)
    _refuse_damaged(folder)
    shelf = Shelf(*weight_files(folder), spell=family.spell)
    config = _read_config(family, values, shelf, folder)
    _refuse_absurd(config, shelf, folder)
    config = _settle_copies(family, config, shelf)
    parts = family.parts(config)
    model = outline(config)
    shapes = {name: param.shape for name, param in model.named_parameters()}
    check_parts(shelf, parts, shapes, family.ignored, folder)
    params = read_parts(shelf, parts, shapes, device=place, dtype=kind, where=folder)
    model.load_state_dict(params, strict=True, assign=True)
    return model.requires_grad_(True).eval()


def _adapted(folder: Path, device: torch.device, dtype: torch.dtype | None) -> Transformer:
    """Open an adapter's base and add the adapter to it."""
    model = load_model(base_of(folder), device=device, dtype=dtype)
    parts = family_of(model.config, _model_type(folder)).parts(model.config)
    add_adapter(model, folder, parts)
    return model


def _read_generation(folder: Path) -> dict[str, Any]:
    """Read generation defaults; older folders name the ids that begin and end a text in config.json."""
    config = read_json(folder, "config.json", missing={})
    older = {name: config[name] for name in GENERATION_IDS if config.get(name) is not None}
    return older | read_json(folder, "generation_config.json", missing={})


def _model_type(folder: Path) -> str | None:
    """Return the family a folder's model was read as; an adapter's is its base's."""
    while is_adapter(folder):
        folder = base_of(folder)
    if folder.is_file():
        return architecture_of(folder)
    name = read_json(folder, "config.json").get("model_type")
    return name if isinstance(name, str) else None


def _refuse_damaged(folder: Path) -> None:
    """Compare a checkpoint's weights with the checksums written beside them, where there are any."""
    if is_sealed(folder) and (wrong := verify(folder, only="*.safetensors")):
        raise CheckpointError(
            f"{folder} is damaged: {wrong}.",
            "Use another checkpoint, or delete checksums.json if it was you who changed the weights.",
        )


def save(
    path: str | os.PathLike[str],
    bundle: Bundle,
    *,
    quantize: str | None = None,
    max_shard_gib: float | None = None,
) -> Path:
    """Write a model folder that :func:`load` opens, and ``transformers`` too if it knows the shape.

    A path that ends in ``.gguf`` becomes one GGUF file, which llama.cpp runs. Adapters that are attached to the
    model are merged into what is written; the model itself stays as it is.

    Each file appears whole or not at all, and none appears before all are written; other files of an existing
    folder stay. A folder without a README gets a model card: what it is, where it comes from, its figures.

    Args:
        path: a folder, or a file that ends in ``.gguf``.
        bundle: what to write.
        quantize: for GGUF files: ``"q8_0"`` or ``"q4_0"``, 8 or 4 bits a weight.
        max_shard_gib: for folders: the largest file of weights, in GiB; a larger model is written in several, with an
            index. None: one file.

    Raises:
        CheckpointError: if the model holds NaN or infinity, ``path`` is a file, or llama.cpp has no such model.
        TokenizerError: if llama.cpp has no such tokenizer.
    """
    if Path(path).suffix == ".gguf":
        if max_shard_gib is not None:
            raise ConfigError("A GGUF file is always one file.", "Leave max_shard_gib out.")
        return save_gguf(Path(path), bundle, _merged_parameters(bundle.model), quantize=quantize)
    if quantize is not None:
        raise ConfigError("Only GGUF files are written quantised.", "Give a path that ends in .gguf.")
    folder = Path(path)
    files = _model_files(bundle.model, bundle.family, _generation(bundle), most_bytes(max_shard_gib))
    files |= _text_files(bundle)
    if not (folder / "README.md").exists():
        family = family_of(bundle.model.config, bundle.family).model_type
        files["README.md"] = model_card(bundle, folder, family=family).encode()
    write_all(folder, files)
    return folder


def save_adapter(path: str | os.PathLike[str], bundle: Bundle, base: Path) -> Path:
    """Write the adapters, the soft prompt or the eyes of a bundle's model, with its text side, as a folder that names its base.

    A model with eyes of which other weights were trained too is written into that folder as a whole.

    Args:
        path: the folder to write.
        bundle: its model has adapters attached.
        base: the folder of the model without them.

    Raises:
        CheckpointError: as in :func:`save`.
        ValueError: if the model has no adapters.
    """
    folder = Path(path)
    if bundle.soft:
        write_all(folder, soft_files(bundle, base, folder) | _text_files(bundle))
        return folder
    if sight_of(bundle.model) is not None:
        return _save_sight(folder, bundle, base)
    if not has_adapters(bundle.model):
        raise ValueError("the model has no adapters")
    parts = family_of(bundle.model.config, bundle.family).parts(bundle.model.config)
    write_all(folder, adapter_files(bundle.model, parts, base=base, folder=folder) | _text_files(bundle))
    return folder


def _save_sight(folder: Path, bundle: Bundle, base: Path) -> Path:
    model = bundle.model
    parts = family_of(model.config, bundle.family).parts(model.config)
    sight = sight_of(model)
    assert sight is not None
    folder.mkdir(parents=True, exist_ok=True)
    is_own = sight.weight.requires_grad  # all of the model was trained, not adapters beside it
    if has_adapters(model):
        write_all(folder / LORA, adapter_files(model, parts, base=base, folder=folder / LORA))
    if is_own:
        model.embed = sight.plain()
        try:
            base = save(folder / OWN_BASE, bundle)
        finally:
            model.embed = sight
    return save_sight(folder, model, base=base, is_own_base=is_own, text=_text_files(bundle))


def convert(
    ref: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_gib: float | None = None,
) -> Path:
    """Write a model in another form: what :func:`load` opens, as :func:`save` writes it; arguments as there."""
    bundle = load(ref, device="cpu", dtype=dtype)
    return save(path, bundle, quantize=quantize, max_shard_gib=max_shard_gib)


def save_model(path: str | os.PathLike[str], model: Transformer, *, family: str | None = None) -> Path:
    """Write the network alone: ``config.json`` and ``model.safetensors``; arguments and errors as in :func:`save`.

    Args:
        path: the folder.
        model: the network.
        family: a ``model_type`` to prefer where several can hold the model.
    """
    write_all(Path(path), _model_files(model, family, {}))
    return Path(path)


# --- settings ---


def _bits(quantize: str, device: str | torch.device | None) -> int:
    known = {"int8": 8, "int4": 4}
    if quantize not in known:
        raise ConfigError(f"quantize is {quantize!r}; expected one of {', '.join(known)}.")
    if device is not None and torch.device(device).type != "cpu":
        raise ConfigError("Quantised models run on the CPU only.", "Leave --device out, or say cpu.")
    return known[quantize]


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(known)}.")
    return known[dtype]


def _family(values: Mapping[str, Any], folder: Path) -> Family:
    name = values.get("model_type")
    if "quantization_config" in values:
        raise CheckpointError(
            f"{folder}: the weights are quantised, which is not read.", "Use the full weights."
        )
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {short(name)}, a family that is not read.",
            f"Known: {', '.join(FAMILIES)}.",
        )
    return FAMILIES[name]


def _read_config(family: Family, values: Mapping[str, Any], shelf: Shelf, folder: Path) -> ModelConfig:
    try:
        config = family.read(values, shelf.entries.keys())
        extras = values.get("stockpot")
        if not isinstance(extras, dict):
            return config
        whole = {name: extras[name] for name in TRAINING if name in extras}
        main = config.main.model_copy(update={"dropout": float(extras.get("dropout", 0.0))})
        side = "encoder" if config.decoder is None else "decoder"
        return ModelConfig(**{**config.model_dump(), **whole, side: main.model_dump()})
    except (ConfigError, ValueError, TypeError, ArithmeticError) as error:
        what = error.what if isinstance(error, ConfigError) else str(error)
        raise CheckpointError(f"{folder / 'config.json'}: {what[:500]}", "Get config.json again.") from error


def _refuse_absurd(config: ModelConfig, shelf: Shelf, folder: Path) -> None:
    """Refuse a config that describes far more than the file holds, before a name is even listed."""
    layers = sum(stack.layers for stack in (config.encoder, config.decoder) if stack is not None)
    if layers > len(shelf.entries) or config.parameters() > 2 * shelf.numbers:
        raise CheckpointError(
            f"{folder}: config.json describes {config.parameters():,} parameters in {layers} layers,"
            f" but the weights hold {shelf.numbers:,} numbers in {len(shelf.entries)} tensors.",
            "Weights and config.json must come from the same model.",
        )


def _settle_copies(family: Family, config: ModelConfig, shelf: Shelf) -> ModelConfig:
    """Forget tensors that repeat others, whichever of the two a file holds.

    A file may hold an output matrix of its own although its config calls it tied; like transformers we believe
    the file then.
    """
    copies = dict(family.copies)
    if config.tied and config.predicts:
        own = config.model_copy(update={"tied": False})
        names = {part.ours: part.theirs[0] for part in family.parts(own)}
        head, embed = names["head.weight"], names["embed.weight"]
        if head in shelf.entries and embed in shelf.entries and not shelf.are_equal(head, embed):
            config = own
        else:
            copies[head] = embed
    listed = {name for part in family.parts(config) for name in part.theirs}
    for copy, name in copies.items():
        if copy in listed:
            shelf.share(copy, name)
        else:
            shelf.settle(copy, name)
    return config


# --- writing ---


def _text_files(bundle: Bundle) -> dict[str, Content]:
    """Make the files of a bundle's text side."""
    source = None if bundle.template is None else bundle.template.source
    settings = bundle.tokenizer.config() | ({} if source is None else {"chat_template": source})
    settings["model_max_length"] = bundle.context
    files: dict[str, Content] = {
        "generation_config.json": _json(_generation(bundle)),
        "tokenizer.json": _tokenizer_json(bundle).encode(),
        "tokenizer_config.json": _json(settings),
    }
    if bundle.embedding is not None:
        files |= embedding_files(bundle.embedding, bundle.model.config.dim)
    return files


def _tokenizer_json(bundle: Bundle) -> str:
    """Return the text of tokenizer.json, which tells other programs too what stands around a text."""
    text = bundle.tokenizer
    if text.frame is not None:
        return text.to_json()
    first, last = ([text.id_to_token(id) for id in ids] for ids in bundle.frame)
    return with_frame(text.to_json(), first, last)


def _merged_parameters(model: Transformer) -> dict[str, Tensor]:
    """Return a model's parameters by name, with adapters added to the weights they stand beside."""
    if isinstance(model, QuantizedTransformer):
        raise CheckpointError(
            "A quantised model is not saved: its rounded weights would pass for the real ones.",
            "Save the model as it was loaded without quantize, or convert it to a .gguf file.",
        )
    refuse_soft(model, "be saved as part of the weights")
    return dict(merged_weights(model))


def _model_files(
    model: Transformer, preferred: str | None, generation: Mapping[str, Any], most: int | None = None
) -> dict[str, Content]:
    config = model.config
    family = family_of(config, preferred)
    params = _merged_parameters(model)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    ids = {name: generation[name] for name in GENERATION_IDS if name in generation}
    values = {**ids, **family.write(config), "dtype": dtype}
    extras = _training_extras(config)
    if family is not NATIVE and extras:
        values["stockpot"] = extras
    parts: list[Part] = family.parts(config)
    assert {part.ours for part in parts} == set(params), "a family must list every parameter"
    shapes = {name: value.shape for name, value in params.items()}
    widths = {name: value.element_size() for name, value in params.items()}
    shards = plan(parts, shapes, widths, most)
    files: dict[str, Content] = {"config.json": _json(values)}
    for shard in shards:
        files[shard.file] = _writer(parts, params, shard.names)
    if len(shards) > 1:
        files[INDEX] = index_of(shards)  # last: until it is there, the shards are no model
    return files


def _writer(
    parts: Sequence[Part], params: Mapping[str, Tensor], names: Collection[str]
) -> Callable[[Path], None]:
    """Return what writes one file of weights."""
    return lambda path: write_parts(path, parts, params, names)


def _training_extras(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that only training needs, where they are not the usual ones."""
    plain = ModelConfig.model_fields
    extras = {
        name: getattr(config, name) for name in TRAINING if getattr(config, name) != plain[name].default
    }
    return extras | ({"dropout": config.main.dropout} if config.main.dropout else {})


def _generation(bundle: Bundle) -> dict[str, Any]:
    """Return generation defaults in the form other programs read too."""
    tokenizer = bundle.tokenizer
    stops = sorted(bundle.stop_ids)
    found: dict[str, Any] = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    found["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    if bundle.model.config.shape == "encoder_decoder":
        found["decoder_start_token_id"] = bundle.start_id
    found |= bundle.generation
    return {name: value for name, value in found.items() if value is not None}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
