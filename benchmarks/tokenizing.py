"""Measure training and encoding of byte-level BPE against the libraries that are installed.

    .venv/bin/python benchmarks/tokenizing.py [--corpus FILE] [--megabytes 20] [--rounds 5] [--out FILE]
    .venv/bin/python benchmarks/tokenizing.py --stream-gb 1      (peak memory of training on a generated stream)

All contestants run in turn, round after round, in one process, so that a busy machine hurts them alike. Reported: median,
spread, and the ratio of medians. Every encoder uses the tokenizer trained here and its ids are compared with those of
`tokenizers`. All encoders are open before the clock starts; "stockpot" has seen no text then, each time.
Without --corpus the text is generated (`stockpot.village`), which repeats itself more than real text does.
(This file is not called tokenizers.py: scripts beside it could no longer import the library of that name.)
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from stockpot.text import SPECIAL_TOKENS, Tokenizer
from stockpot.text.kinds import BYTE_LETTERS
from stockpot.text.pieces import WORD_PATTERN

PEERS = ("tokenizers", "tiktoken", "sentencepiece", "riptoken", "rustbpe", "bpeasy", "gigabpe")
THREADS = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help=".txt or .jsonl, also .gz")
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    parser.add_argument(
        "--stream-gb", type=float, help="only train on a stream of this size, and say the peak memory"
    )
    parser.add_argument("--kind", default="byte-bpe", help="kind to train with --stream-gb")
    options = parser.parse_args()
    if options.stream_gb:
        _measure_stream(int(options.stream_gb * 1e9), options.kind, options.vocab_size)
        return

    texts = list(_limited(_documents(options.corpus), int(options.megabytes * 1e6)))
    size = sum(len(text.encode()) for text in texts)
    lines = [_heading(options, texts, size)]
    lines += _table(
        "Training", "s", _rounds(_trainers(texts, options.vocab_size), options.rounds), better=min
    )
    encoders, verdicts = _encoders(texts, options.vocab_size, options.rounds)
    seconds = _rounds(encoders, options.rounds)
    speeds = {name: [size / 1e6 / value for value in values] for name, values in seconds.items()}
    lines += _table("Encoding", "MB/s", speeds, better=max, notes=verdicts)
    report = "\n".join(lines)
    print(report)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(report + "\n")


def _heading(options: argparse.Namespace, texts: list[str], size: int) -> str:
    versions = []
    for name in PEERS:
        try:
            importlib.import_module(name)
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except ImportError:
            versions.append(f"{name} absent")
    corpus = options.corpus.name if options.corpus else "generated text (village)"
    return (
        f"{len(texts)} documents, {size / 1e6:.1f} MB of {corpus}; vocabulary {options.vocab_size}; {options.rounds} rounds; "
        f"{_processor()}, {THREADS} cores, Python {platform.python_version()}, numpy {np.__version__}.\n\n"
        f"Peers: {', '.join(versions)}.\n"
    )


def _processor() -> str:
    """Name the processor as Linux does: a hosted machine often hides its model, so family and widest vectors too."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.machine()
    facts = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family')}, model {facts.get('model')}, {widest})"


def _documents(corpus: Path | None) -> Iterator[str]:
    if corpus is None:
        from stockpot.village import Village

        yield from (record["text"] for record in Village(seed=0).documents())
        return
    opener: Callable[..., Any] = gzip.open if corpus.suffix == ".gz" else open
    with opener(corpus, "rt", encoding="utf-8") as file:
        if ".jsonl" in corpus.name:
            for line in file:
                yield json.loads(line)["text"]
        else:
            yield file.read()


def _limited(texts: Iterator[str], size: int) -> Iterator[str]:
    for text in texts:
        if size <= 0:
            return
        size -= len(text.encode())
        yield text


def _rounds(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}/{rounds}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
    return seconds


def _table(
    title: str,
    unit: str,
    values: dict[str, list[float]],
    *,
    better: Callable[..., float],
    notes: dict[str, str] | None = None,
) -> list[str]:
    ours = statistics.median(values["stockpot"])
    rows = [
        f"| {title} | median {unit} | spread | stockpot is … times as fast | ids |",
        "|---|---|---|---|---|",
    ]
    for name, found in values.items():
        median = statistics.median(found)
        ratio = median / ours if better is min else ours / median
        note = (notes or {}).get(name, "")
        rows.append(f"| {name} | {median:.2f} | {min(found):.2f}–{max(found):.2f} | {ratio:.2f} | {note} |")
    return [*rows, ""]


# Memory: half of the words come from a fixed list, half are new every time, which no real corpus is as bad as.


def _measure_stream(size: int, kind: str, vocab_size: int) -> None:
    import resource

    start = time.perf_counter()
    tokenizer = Tokenizer.train(_stream(size), kind=kind, vocab_size=vocab_size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tokenizer!r} from a stream of {size / 1e9:.2f} GB: {seconds:.0f} s, peak memory {peak:.2f} GB")


def _stream(size: int) -> Iterator[str]:
    choose = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    known = ["".join(choose.choices(letters, k=choose.randrange(2, 11))) for _ in range(30_000)]
    while size > 0:
        fresh = choose.getrandbits(60 * 500)
        words = []
        for word in choose.choices(known, k=500):
            fresh, rest = divmod(fresh, 1 << 60)
            words += [word, "".join(letters[rest >> shift & 15] for shift in range(0, 40, 5))]
        text = " ".join(words)
        size -= len(text)
        yield text


# Training: every contestant reads the same Python strings, and ends with a vocabulary in memory.


def _trainers(texts: list[str], vocab_size: int) -> dict[str, Callable[[], object]]:
    contestants: dict[str, Callable[[], object]] = {
        "stockpot": lambda: Tokenizer.train(iter(texts), vocab_size=vocab_size),
        "tokenizers": lambda: _train_reference(texts, vocab_size),
    }
    if _has("sentencepiece"):
        contestants["sentencepiece, from memory"] = lambda: _train_sentencepiece(texts, vocab_size, None)
        path = Path(tempfile.mkdtemp()) / "corpus.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        contestants["sentencepiece, from a file"] = lambda: _train_sentencepiece(texts, vocab_size, path)
    if _has("rustbpe"):
        contestants["rustbpe"] = lambda: _train_rustbpe(texts, vocab_size)
    if _has("bpeasy"):
        contestants["bpeasy"] = lambda: importlib.import_module("bpeasy").train_bpe(
            iter(texts), WORD_PATTERN, 128, vocab_size
        )
    if _has("gigabpe"):
        path = Path(tempfile.mkdtemp()) / "corpus.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        contestants["gigabpe (GPT-2's splitting)"] = lambda: importlib.import_module("gigabpe").train_bpe(
            [str(path)], vocab_size=vocab_size, pretokenizer="bytelevel"
        )
    return contestants


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _train_reference(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    from tokenizers import Regex, models, pre_tokenizers, trainers

    engine = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    engine.train_from_iterator(texts, trainer)
    return engine


def _train_sentencepiece(texts: list[str], vocab_size: int, path: Path | None) -> None:
    trainer = importlib.import_module("sentencepiece").SentencePieceTrainer
    # It wants sentences, and drops those of more than 4192 bytes.
    source = (
        {"input": str(path)} if path else {"sentence_iterator": (s for t in texts for s in t.split("\n"))}
    )
    trainer.train(
        **source,
        model_writer=io.BytesIO(),
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentence_length=1 << 20,
        num_threads=THREADS,
        minloglevel=2,
    )


def _train_rustbpe(texts: list[str], vocab_size: int) -> None:
    tokenizer = importlib.import_module("rustbpe").Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=WORD_PATTERN)


# Encoding: the tokenizer just trained, in every library that can hold it.


def _encoders(
    texts: list[str], vocab_size: int, rounds: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    tokenizer = Tokenizer.train(texts, vocab_size=vocab_size)
    source = tokenizer.to_json()
    engine = tokenizers.Tokenizer.from_str(source)
    engine.encode_special_tokens = True
    unused = [Tokenizer(source) for _ in range(rounds + 1)]  # one for each round and one for the check
    used = Tokenizer(source)

    def first() -> list[Any]:
        return unused.pop().encode_batch(texts)

    def again() -> list[Any]:
        return used.encode_batch(texts)

    contestants: dict[str, Callable[[], object]] = {
        "stockpot": first,
        "stockpot, opening its file too": lambda: Tokenizer(source).encode_batch(texts),
        "stockpot, these words seen before": again,
        "tokenizers encode_batch": lambda: engine.encode_batch(texts),
        "tokenizers encode_batch_fast": lambda: engine.encode_batch_fast(texts),
    }
    check: dict[str, Callable[[], list[list[int]]]] = {
        "stockpot": lambda: [row.tolist() for row in first()],
        "stockpot, these words seen before": lambda: [row.tolist() for row in again()],
    }
    ranks = _ranks(tokenizer)
    if _has("tiktoken"):
        encoding = importlib.import_module("tiktoken").Encoding(
            "stockpot", pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        check["tiktoken, 1 thread"] = lambda: encoding.encode_ordinary_batch(texts, num_threads=1)
        check[f"tiktoken, {THREADS} threads"] = lambda: encoding.encode_ordinary_batch(
            texts, num_threads=THREADS
        )
    if _has("riptoken"):
        core = importlib.import_module("riptoken").CoreBPE(ranks, {}, WORD_PATTERN)
        check["riptoken, 1 thread"] = lambda: [core.encode_ordinary(text) for text in texts]
        check[f"riptoken, {THREADS} threads"] = lambda: core.encode_ordinary_batch(texts)
    expected = [encoding.ids for encoding in engine.encode_batch(texts)]
    verdicts = {}
    for name, encode in check.items():
        verdicts[name] = "equal" if encode() == expected else "different"
        contestants.setdefault(name, encode)
    return contestants, verdicts


def _ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    byte_of = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
    special = set(tokenizer.special_ids.values())
    ordinary = [number for number in range(tokenizer.vocab_size) if number not in special]
    return {bytes(byte_of[letter] for letter in tokenizer.id_to_token(number)): number for number in ordinary}


if __name__ == "__main__":
    main()
