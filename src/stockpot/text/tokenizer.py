"""Tokenizer: text ↔ ids, over the Rust ``tokenizers`` engine.

Decides what a tokenizer is to the rest of stockpot: one ``tokenizer.json`` plus the roles of its special
tokens (which one ends a document, pads, is unknown …). Text never turns into special ids unless the caller
says ``allow_special=True``. How a kind learns lies in ``kinds``, what other file formats mean in ``formats``,
conversations in ``chat``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine

from stockpot.durable import write_atomically
from stockpot.errors import TokenizerError
from stockpot.text.corpus import CorpusEncoder, cut_rule
from stockpot.text.formats import (
    MAX_IDS,
    begins_with,
    is_byte_level,
    kind_of,
    open_engine,
    read_roles,
    read_source,
    read_template,
    token_bytes,
)
from stockpot.text.framing import Frame, frame_of, framing_roles
from stockpot.text.kinds import Request, build, kind_named
from stockpot.text.pieces import utf8

__all__ = ["ROLES", "SPECIAL_TOKENS", "Tokenizer"]

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|unk|>",
    "<|bos|>",
    "<|eos|>",
    "<|mask|>",
    "<|cls|>",
    "<|sep|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

ROLES: dict[str, tuple[str, ...]] = {
    "bos": ("<|bos|>", "<s>", "<bos>", "[BOS]"),
    "eos": ("<|eos|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "unk": ("<|unk|>", "<unk>", "[UNK]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
    "cls": ("<|cls|>", "[CLS]"),
    "sep": ("<|sep|>", "[SEP]"),
}
"""The spellings by which a special token is recognised when nothing else says what it is for."""

_SENTINEL = re.compile(r"<\|?extra_(?:id_)?(\d+)\|?>")


class Tokenizer:
    """Turns text into ids and back.

    Made by :meth:`train` or :meth:`load`.

    Args:
        source: the text of a ``tokenizer.json``.
        roles: what special tokens are for, e.g. ``{"eos": "</s>"}``; what is missing is told by spelling.
        chat_template: Jinja source that came with the tokenizer, if any.
        adds_bos: whether a text begins with the begin-of-sequence id; None: told by the file.

    Attributes:
        kind: one of the eight kinds (for a foreign file, the nearest).
        vocab_size: highest id + 1.
        special_ids: id of each special token's spelling.
        adds_bos: whether the text that a decoder continues begins with ``bos_id``. ``encode`` never adds it;
            ``Bundle.encode`` does.
    """

    def __init__(
        self,
        source: str,
        *,
        roles: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        adds_bos: bool | None = None,
    ) -> None:
        self._engine = open_engine(source)
        self._engine.encode_special_tokens = True
        vocabulary = self._engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > MAX_IDS:  # writing the engine out would list every id that is missing
            raise TokenizerError(
                f"tokenizer.json has ids of {MAX_IDS} and more.", "Copy or train the tokenizer again."
            )
        self._spec: dict[str, Any] = json.loads(self._engine.to_str())
        self._pieces: dict[int, str] = {}
        self.chat_template = chat_template
        self.kind = kind_of(self._spec)
        added = self._engine.get_added_tokens_decoder()
        self.special_ids = {token.content: number for number, token in sorted(added.items()) if token.special}
        self._tokens: dict[int, str] = {number: token for token, number in vocabulary.items()}
        self.roles = self._find_roles(roles or {})
        self.adds_bos = begins_with(self._spec, self.roles.get("bos"), adds_bos)
        self._reachable = self._specials_text_can_reach()
        self._allowing: Engine | None = None
        self._corpus: CorpusEncoder | None = None
        self._lock = Lock()

    def _find_roles(self, given: Mapping[str, str]) -> dict[str, str]:
        told = framing_roles(self._spec) | dict(given)
        roles = {role: token for role, token in told.items() if role in ROLES and token in self.special_ids}
        for role, spellings in ROLES.items():
            known = [token for token in spellings if token in self.special_ids]
            if role not in roles and known:
                roles[role] = known[0]
        return roles

    def _specials_text_can_reach(self) -> frozenset[int]:
        """Return special ids inside the model's vocabulary, which the model itself could emit."""
        vocabulary = self._spec["model"]["vocab"]  # only a Unigram model's is a list
        inside = set(range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values())
        unk = self.special_ids.get(self.roles.get("unk", ""))
        return frozenset(number for number in self.special_ids.values() if number in inside and number != unk)

    # --- making -----------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: str = "byte-bpe",
        vocab_size: int = 8192,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        min_count: int = 1,
        character_coverage: float = 1.0,
        ngram: int = 3,
    ) -> Tokenizer:
        """Learn a tokenizer from ``texts``, which is read once, as a stream, in bounded memory.

        Args:
            texts: documents; the order does not matter to the result.
            kind: one of ``stockpot.text.KINDS``.
            special_tokens: spellings; they get the last ids (the unknown token, where a kind needs one, the
                first), and no text is ever encoded into them.
            vocab_size: most entries, special tokens included; a small corpus can yield fewer.
            min_count: pairs, blocks or words seen less often are not learned.
            character_coverage: share of all characters in the corpus that must be known, in (0, 1].
            ngram: characters in a block, for kind ``ngram``.

        Raises:
            TokenizerError: empty corpus, unknown kind, a vocabulary too small for alphabet and special
                tokens.
        """
        chosen = kind_named(kind)
        special = _checked_specials(special_tokens)
        unk = next((token for token in ROLES["unk"] if token in special), None) if chosen.needs_unk else None
        if chosen.needs_unk and unk is None:
            raise TokenizerError(
                f'Kind "{kind}" needs a special token for unknown text; found only {", ".join(special)}.',
                'Add "<|unk|>" to special_tokens.',
            )
        if ngram < 1 or not 0.0 < character_coverage <= 1.0:
            raise ValueError(
                f"ngram must be >= 1 and character_coverage in (0, 1]; got {ngram}, {character_coverage}"
            )
        inside = 1 if unk else 0
        outside = len(special) - inside
        request = Request(vocab_size - outside, unk, min_count, character_coverage, ngram, outside)
        if request.tokens < 1 + inside:
            raise TokenizerError(
                f"A vocabulary of {vocab_size} has no room beside the {len(special)} special tokens.",
                "Ask for a larger vocab_size, such as 8192.",
            )
        return cls(build(chosen, texts, request, special), adds_bos=True)

    @classmethod
    def load(cls, ref: str | os.PathLike[str]) -> Tokenizer:
        """Open a tokenizer: a model's folder, or a file: tokenizer.json, SentencePiece, tiktoken ranks or GGUF.

        Raises:
            TokenizerError: if it is missing, damaged, or of a kind we do not read.
        """
        path = Path(ref)
        try:
            return cls.of(*read_source(path))
        except TokenizerError as error:
            if str(path) in error.what:
                raise
            raise TokenizerError(f"{path}: {error.what}", error.todo) from error

    @classmethod
    def of(cls, source: str, config: Mapping[str, Any]) -> Tokenizer:
        """Make one from the text of a tokenizer.json and what its tokenizer_config.json says."""
        template, adds_bos = read_template(config), config.get("add_bos_token")
        return cls(
            source,
            roles=read_roles(config),
            chat_template=template,
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        )

    def save(self, folder: str | os.PathLike[str], *, chat_template: str | None = None) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, each in one step: never a half file.

        Args:
            folder: made if missing.
            chat_template: Jinja source written into the config; by default the tokenizer's own, if it has
                one.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "tokenizer.json", self.to_json())
        config = self.config() | ({"chat_template": t} if (t := chat_template or self.chat_template) else {})
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path / "tokenizer_config.json", text)

    def config(self) -> dict[str, Any]:
        """Return what ``tokenizer_config.json`` says besides the chat template; ``transformers`` reads it."""
        named = {f"{role}_token": token for role, token in self.roles.items()}
        others = [token for token in self.special_ids if token not in self.roles.values()]
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,  # transformers' way to say: no limit of the tokenizer's own
            **named,
            **({"add_bos_token": self.adds_bos} if "bos" in self.roles else {}),
            "additional_special_tokens": others,
        }

    def to_json(self) -> str:
        """Return the text of ``tokenizer.json``."""
        return self._engine.to_str(pretty=False)

    # --- using ------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of ``text``. Spellings of special tokens are ordinary text unless ``allow_special``.

        Raises:
            TokenizerError: if the text holds a lone surrogate, or the model turns it into a special token.
        """
        utf8(text)
        if allow_special:
            return list(self._allowing_engine().encode(text, add_special_tokens=False).ids)
        ids = list(self._engine.encode(text, add_special_tokens=False).ids)
        return ids if self._reachable.isdisjoint(ids) else self._encode_guarded(text)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[NDArray[np.int32]]:
        """Return the ids of each text: the fast path for corpora, with the same ids as :meth:`encode`."""
        rule = None if allow_special or self._reachable else cut_rule(self._spec)
        if rule is None:
            return [np.array(self.encode(text, allow_special=allow_special), np.int32) for text in texts]
        with self._lock:
            if self._corpus is None:
                self._corpus = CorpusEncoder(self._engine, self._spec, rule)
            return self._corpus.encode(texts)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of :meth:`encode` and the characters ``[start, end)`` of ``text`` each stands for.

        A character that is spread over several tokens belongs to each of them.

        Raises:
            TokenizerError: as :meth:`encode` does.
        """
        utf8(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        whole = self._engine.encode(text, add_special_tokens=False)
        parts = [text] if self._reachable.isdisjoint(whole.ids) else self._guarded_parts(text)
        at = 0
        for part in parts:
            found = whole if len(parts) == 1 else self._engine.encode(part, add_special_tokens=False)
            ids += found.ids
            offsets += [(at + start, at + end) for start, end in found.offsets]
            at += len(part)
        self._refuse_specials(ids)
        return ids, offsets

    def _allowing_engine(self) -> Engine:
        # The switch lives on the engine, so each meaning gets its own: flipping it would not be safe between
        # threads.
        if self._allowing is None:
            self._allowing = open_engine(self.to_json())
        return self._allowing

    def _guarded_parts(self, text: str) -> list[str]:
        """Cut inside each spelling of a special token that the model would turn into its id."""
        spellings = sorted(
            (t for t, n in self.special_ids.items() if n in self._reachable), key=len, reverse=True
        )
        parts: list[str] = []
        at = 0
        for found in re.finditer("|".join(map(re.escape, spellings)), text):
            parts.append(text[at : found.start() + 1])
            at = found.start() + 1
        return [*parts, text[at:]]

    def _encode_guarded(self, text: str) -> list[int]:
        """Encode text that reached a special id through the model."""
        parts = self._guarded_parts(text)
        ids = [n for part in parts for n in self._engine.encode(part, add_special_tokens=False).ids]
        self._refuse_specials(ids)
        return ids

    def _refuse_specials(self, ids: Sequence[int]) -> None:
        """Refuse ids of ordinary text that cutting could not keep from becoming special."""
        if not self._reachable.isdisjoint(ids):
            raise TokenizerError(
                "This tokenizer's model turns ordinary text into a special token.",
                "Remove the spelling from the text.",
            )

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ``ids``; invalid UTF-8 becomes U+FFFD, ids without a token are skipped."""
        return self._engine.decode([int(number) for number in ids], skip_special_tokens=skip_special)

    def piece(self, id: int) -> str | None:
        """Return the text that an id adds wherever it stands, special ones none; None: it depends on its neighbours.

        It is known for tokenizers that work on bytes, where the id stands for whole characters.
        """
        if not self._is_bytewise:
            return None
        found = self._pieces.get(id)
        if found is None:
            found = self._pieces[id] = self.decode([id], skip_special=True)
        return None if "\ufffd" in found else found

    @cached_property
    def _is_bytewise(self) -> bool:
        return (self._spec.get("decoder") or {}).get("type") == "ByteLevel"

    def split(self, text: str) -> list[str]:
        """Return the words of ``text`` as the model sees them, spelled in the engine's letters.

        Raises:
            TokenizerError: if the text holds a lone surrogate.
        """
        utf8(text)
        normalizer, pre_tokenizer = self._engine.normalizer, self._engine.pre_tokenizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        if pre_tokenizer is None:
            return [text] if text else []
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges of a byte-pair model in the order learned; empty for other models."""
        return [(left, right) for left, right in self._spec["model"].get("merges", ())]

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a vocabulary entry as the engine spells it, or None."""
        return self._engine.token_to_id(token)

    def id_to_token(self, id: int) -> str:
        """Return the vocabulary entry with this id, as the engine spells it.

        Raises:
            TokenizerError: if there is none.
        """
        token = self._tokens.get(int(id))
        if token is None:
            raise TokenizerError(
                f"There is no token with id {id}.", f"Ids run from 0 to {self.vocab_size - 1}."
            )
        return token

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes this id stands for in text; none for a special token."""
        token = self.id_to_token(id)
        return b"" if token in self.special_ids else self._bytes_of(token)

    def _bytes_of(self, token: str) -> bytes:
        return token_bytes(self._spec["model"], token, spells_bytes=self._spells_bytes)

    @cached_property
    def _spells_bytes(self) -> bool:
        return is_byte_level(self._spec)

    # --- facts ------------------------------------------------------------------------

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes each id stands for in text ``(vocab,)``; 0 for special tokens and unused ids.

        In the lossy kinds (word, wordpiece) blanks between tokens are nobody's bytes.
        """
        lengths = np.zeros(self.vocab_size, np.int64)
        for number, token in self._tokens.items():
            if token not in self.special_ids:
                lengths[number] = len(self._bytes_of(token))
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: vocabulary, merges, splitting, normalising, added tokens."""
        parts = {
            name: self._spec.get(name) for name in ("model", "pre_tokenizer", "normalizer", "added_tokens")
        }
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def frame(self) -> Frame | None:
        """The ids before and behind a text, where its maker's tokenizer.json names them; :meth:`encode` adds none.

        None where nothing is said, and for our own special tokens: those go by what a model is for, and one
        tokenizer may serve several.
        """
        found = frame_of(self._spec, self._engine)
        ours = {self.special_ids.get(token) for token in SPECIAL_TOKENS}
        both = () if found is None else (*found[0], *found[1])
        return None if both and ours.issuperset(both) else found

    def _role_id(self, role: str) -> int | None:
        return self.special_ids.get(self.roles.get(role, ""))

    @property
    def bos_id(self) -> int | None:
        """Id that begins a document."""
        return self._role_id("bos")

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document."""
        return self._role_id("eos")

    @property
    def pad_id(self) -> int | None:
        """Id that fills a batch."""
        return self._role_id("pad")

    @property
    def unk_id(self) -> int | None:
        """Id of text the vocabulary lacks."""
        return self._role_id("unk")

    @property
    def mask_id(self) -> int | None:
        """Id that hides a token from a masked language model."""
        return self._role_id("mask")

    @property
    def cls_id(self) -> int | None:
        """Id in front of what is to be classified."""
        return self._role_id("cls")

    @property
    def sep_id(self) -> int | None:
        """Id between the two texts of a pair."""
        return self._role_id("sep")

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids that stand for missing spans, in order: ``<|extra_0|>`` or ``<extra_id_0>``, and so on."""
        found = ((_SENTINEL.fullmatch(token), number) for token, number in self.special_ids.items())
        return [number for _, number in sorted((int(match[1]), number) for match, number in found if match)]

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size})"

    def __getstate__(self) -> dict[str, Any]:
        names = ("roles", "chat_template", "adds_bos")
        return {"source": self.to_json(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(self, **state)


def _checked_specials(special_tokens: Sequence[str]) -> list[str]:
    special = list(special_tokens)
    wrong = [token for token in special if not token or token != token.strip()]
    if wrong:
        raise TokenizerError(f"Special tokens need letters and no blanks around them; found {wrong[0]!r}.")
    if len(set(special)) != len(special):
        raise TokenizerError("A special token is listed twice.", f"Found: {', '.join(special)}.")
    return special
