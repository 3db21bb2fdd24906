"""Damaged model folders: each is refused in one line, or opens with finite weights; never a crash, a hang or a lot of memory.

A case is a good folder with one file damaged: bytes flipped, cut, doubled or replaced, or, of JSON, a value put in the place
of another. What opens is used: weights are looked at, a text is encoded and decoded, a conversation rendered.
"""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy

import pytest
from memory import Peak

from stockpot.errors import StockpotError
from stockpot.text import Message
from stockpot.weights.store import load, save

SHARD = 60_000 / 2**30
LONGEST_S = 60  # for one case
MOST_KIB = 200_000  # growth of this process over all cases; the model has 160 kB
VALUES = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(2**70), 1e308, -0.5, float("nan"), float("inf"), "", "x", "../..",
    "/etc/passwd", "a" * 10_000, [], {}, [[]], [None] * 9, {"a": {}}, "\ud800", "<|eos|>", [0, -1], "model.safetensors",
)  # fmt: skip


def damaged(data, dice, span):
    """Change one to three places within the first ``span`` bytes."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(min(span, len(found)) or 1)
        how = dice.randrange(6)
        if how == 0 and found:
            found[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            found[at : at + 8] = dice.choice((b"\xff" * 8, bytes(8), b"\0\0\0\x80\0\0\0\0"))
        elif how == 2:
            del found[at : at + dice.randint(1, 64)]
        elif how == 3:
            found[at:at] = found[at : at + dice.randint(1, 64)]
        elif how == 4 and dice.random() < 0.2:
            del found[at:]
        else:
            found[at : at + 1] = bytes([dice.randrange(256)])
    return bytes(found)


def places(value, path=()):
    """Yield where every value of a JSON document stands."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


def rearranged(data, dice):
    """Put hostile values into a JSON document, or take some out."""
    document = [json.loads(data)]
    for _ in range(dice.randint(1, 2)):
        # short paths first: settings are more telling than one of a thousand tokens
        every = [path for path in places(document) if path]
        path = dice.choice([one for one in every if len(one) <= dice.choice((2, 3, 9))] or every)
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if dice.random() < 0.2 and len(path) > 1:
            del parent[path[-1]]
        elif dice.random() < 0.2:
            other = document
            for key in dice.choice(every):
                other = other[key]
            parent[path[-1]] = json.loads(json.dumps(other))
        else:
            parent[path[-1]] = deepcopy(dice.choice(VALUES))
        if not document:
            break
    return json.dumps(document[0] if document else None).encode()


@contextmanager
def in_time():
    def late(*_):
        raise TimeoutError(f"one file took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)  # computing time: the machine may be busy
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def use(path):
    """Open a model and touch all that a damaged file could have spoiled; says how it went."""
    try:
        bundle = load(path)
        for param in bundle.model.parameters():
            assert bool(param.isfinite().all())
        ids = bundle.tokenizer.encode("The cat sat on the mat, 12 <|eos|> été.")
        bundle.tokenizer.decode(ids)
        bundle.encode("one two")
        if bundle.template is not None:
            bundle.encode([Message("user", "hi")])
    except StockpotError as error:
        assert "\n" not in str(error), error
        assert len(str(error)) < 2_000, error
        return "refused"
    return "opened"


def hammer(path, file, seed, count, *, span=1 << 30, structure=False):
    """Open ``path`` with ``file`` damaged ``count`` times; returns how many were refused and opened."""
    dice = random.Random(seed)
    data = file.read_bytes()
    peak = Peak()
    told = Counter()
    try:
        for number in range(count):
            if structure and dice.random() < 0.7:
                file.write_bytes(rearranged(data, dice))
            else:
                file.write_bytes(damaged(data, dice, span))
            try:
                with in_time():
                    told[use(path)] += 1
            except BaseException as error:
                error.add_note(f"case {number} of seed {seed}: {file.read_bytes()[:400]!r}")
                raise
    finally:
        file.write_bytes(data)
    grown = peak.grown_kib()
    assert grown < MOST_KIB, f"memory grew by {grown} KiB"
    return told


@pytest.fixture(scope="module")
def models(bundle, tmp_path_factory):
    """Write the model once in every form that is read."""
    home = tmp_path_factory.mktemp("fuzz")
    save(home / "one", bundle)
    save(home / "shards", bundle, max_shard_gib=SHARD)
    for kind in (None, "q8_0", "q4_0"):
        save(home / f"{kind}.gguf", bundle, quantize=kind)
    return home


def directory_of(file):
    """Return where the directory of a safetensors or GGUF file ends, and a little more."""
    data = file.read_bytes()
    if file.suffix == ".gguf":
        return data.index(b"output_norm.weight") + 4000
    return int.from_bytes(data[:8], "little") + 200


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def fuzz_safetensors(models, count):
    one, shards = models / "one", models / "shards"
    first = sorted(shards.glob("*.safetensors"))[0]
    files = [(one, one / "model.safetensors"), (shards, first)]
    told = Counter()
    for seed, (folder, file) in enumerate(files):
        told += hammer(folder, file, seed, count // 4, span=directory_of(file))
        told += hammer(folder, file, seed + 10, count // 4)  # anywhere: mostly the numbers
    return told


def fuzz_json(models, count):
    one, shards = models / "one", models / "shards"
    files = [(one, one / name) for name in JSON_FILES] + [(shards, shards / "model.safetensors.index.json")]
    told = Counter()
    for seed, (folder, file) in enumerate(files):
        told += hammer(folder, file, seed, count // len(files), structure=True)
    return told


def fuzz_gguf(models, count):
    told = Counter()
    for seed, kind in enumerate((None, "q8_0", "q4_0")):
        file = models / f"{kind}.gguf"
        told += hammer(file, file, seed, count // 3, span=directory_of(file))
    return told


FUZZ = {"safetensors": fuzz_safetensors, "json": fuzz_json, "gguf": fuzz_gguf}


@pytest.mark.parametrize("form", FUZZ)
def test_damaged_files_are_refused_in_one_line_or_open(form, models):
    told = FUZZ[form](models, 120)
    assert told["refused"] > 30


@pytest.mark.slow
@pytest.mark.parametrize("form", FUZZ)
def test_ten_thousand_damaged_files_are_refused_in_one_line_or_open(form, models):
    told = FUZZ[form](models, 10_020)
    print(f"{form}: {told.total():,} files: {dict(told)}")
    assert told.total() >= 10_000
    assert told["refused"] > 3_000
