"""What a family of models is: two maps, each used in both directions.

A family says which of our settings its ``config.json`` stands for, and which of its tensors make up ours. It
never touches a file or a tensor itself. Whether a model *can* be written as a family is not a list of
conditions: it can if the settings come back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import ModelConfig, StackConfig

__all__ = [
    "NUMBER",
    "Family",
    "Part",
    "VisionFamily",
    "canonical",
    "choice",
    "only",
    "refuse",
    "setting",
    "short",
]

NUMBER = (int, float)
SHOWN = 80  # characters of a value in an error


@dataclass(frozen=True)
class Part:
    """How one of our tensors is stored in a file.

    Attributes:
        ours: name of our parameter.
        theirs: names in the file; their rows follow each other in ours.
        rows: rows of each of ``theirs``; empty when there is only one.
        transposed: the file keeps inputs × outputs.
        mixed_heads: the file keeps the rows head by head: a head's query, key and value, then the next head's;
            how many heads there are. 0: all queries, all keys, all values, as here.
        skipped: rows at the beginning of the file's tensor that stand for nothing here.
        gain: what the model adds to the stored numbers.
        lead: dimensions of length 1 that the file has in front of ours; -1: ours has one, the file none.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    mixed_heads: int = 0
    skipped: int = 0
    gain: float = 0.0
    lead: int = 0


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Attributes:
        model_type: as ``config.json`` spells it.
        read: their settings, and the names of the tensors that are there → ours.
        write: our settings → theirs, as near as they come.
        parts: our settings → where every tensor is stored.
        root: what the network's tensors begin with; files of a network without its heads leave it out.
        outside: beginnings of names that never carry the root.
        older: endings of names as older files spell them → as they are spelled now.
        copies: names of tensors that repeat another → that other one; a file may hold either or both.
        ignored: endings of tensor names that files may hold and nobody needs.
    """

    model_type: str
    read: Callable[[Mapping[str, Any], Collection[str]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    parts: Callable[[ModelConfig], list[Part]]
    root: str = ""
    outside: tuple[str, ...] = ()
    older: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def can_hold(self, config: ModelConfig) -> bool:
        """Tell whether a model comes back the same after being written as this family."""
        try:
            names = {name for part in self.parts(config) for name in part.theirs}
            return canonical(self.read(self.write(config), names)) == canonical(config)
        except (CheckpointError, ConfigError):
            return False

    def spell(self, name: str) -> str:
        """Return a tensor's full present name, however a file spells it."""
        for old, new in self.older.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name if name.startswith((self.root, *self.outside)) else self.root + name


@dataclass(frozen=True)
class VisionFamily:
    """One ``model_type`` of image encoders and of the towers beside them; as :class:`Family` otherwise.

    ``kind`` is the class of network, made from what ``read`` returns.
    """

    model_type: str
    read: Callable[[Mapping[str, Any], Collection[str]], Any]
    write: Callable[[Any], dict[str, Any]]
    parts: Callable[[Any], list[Part]]
    kind: type[Any]
    root: str = ""
    outside: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def spell(self, name: str) -> str:
        """Return a tensor's full name, however a file spells it."""
        return name if name.startswith((self.root, *self.outside)) else self.root + name


def canonical(config: ModelConfig) -> ModelConfig:
    """Return the same model with every automatic value written out and what only training uses reset."""
    stacks = {
        name: _canonical_stack(stack)
        for name, stack in (("encoder", config.encoder), ("decoder", config.decoder))
        if stack is not None
    }
    neutral = {"embedding_scale": config.embedding_scale or 1.0, "logit_scale": config.logit_scale or 1.0}
    return config.model_copy(update={**stacks, **neutral, "init_std": None, "zero_init": True})


def _canonical_stack(stack: StackConfig) -> StackConfig:
    plain = StackConfig()
    values: dict[str, Any] = {
        "kv_heads": stack.key_heads,
        "head_dim": stack.head_width,
        "ffn_dim": stack.ffn_width,
        "window": stack.windows,
        "attention_scale": stack.attention_scale or stack.head_width**-0.5,
        "dropout": 0.0,
    }
    if stack.position != "rope":
        unused = ("rope_theta", "rope_local_theta", "rope_fraction", "rope_scaling")
        values |= {name: getattr(plain, name) for name in unused}
    if stack.position != "relative":
        values |= {name: getattr(plain, name) for name in ("relative_buckets", "relative_distance")}
    if all(width is None for width in stack.windows):
        values["rope_local_theta"] = None
    return stack.model_copy(update=values)


def refuse(what: str) -> CheckpointError:
    """Make the error for a model that a family's name promises but our Transformer does not have."""
    told = what if len(what) <= 2 * SHOWN else f"{what[: 2 * SHOWN]}…"
    return CheckpointError(f"config.json: {told} is not supported.", "Use another model of this family.")


def short(value: Any) -> str:
    """Show a value of a file in an error, cut to a few words."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def setting(values: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """Read one setting of a ``config.json`` and check its type; null counts as absent.

    Raises:
        CheckpointError: if it is missing without a default, or of another type.
    """
    value = values.get(name)
    if value is None:
        value = default
    if value is None and default is None and not (isinstance(kind, tuple) and type(None) in kind):
        raise CheckpointError(f"config.json: {name!r} is missing.", "Get the model's config.json again.")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(
            f"config.json: {name} is {short(value)}, which is {type(value).__name__}.",
            "Get config.json again.",
        )
    return value


def only(values: Mapping[str, Any], **allowed: Any) -> None:
    """Refuse settings that change what a model computes and that we do not have.

    Raises:
        CheckpointError: if one of them is there, not null, and not the value given.
    """
    for name, value in allowed.items():
        if values.get(name) not in (None, value):
            raise refuse(f"{name} {short(values[name])}")


def choice(values: Mapping[str, Any], name: str, known: Mapping[str, str], default: str) -> str:
    """Read a setting that names one of several things, and return our word for it.

    Raises:
        CheckpointError: if it names something else.
    """
    word = setting(values, name, str, default)
    if word not in known:
        raise refuse(f"{name} {short(word)}")
    return known[word]
