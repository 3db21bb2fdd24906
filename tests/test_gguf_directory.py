"""A GGUF file's directory is believed only after every length, count and offset in it has been checked."""

from __future__ import annotations

import random
import resource
import struct

import gguf
import numpy as np
import pytest

from stockpot.errors import CheckpointError
from stockpot.gguf_directory import TENSOR_TYPES, Array, is_gguf, read_directory

U32, STRING, ARRAY = 4, 8, 9


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(name, dims, kind, offset):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(*, keys=(), tensors=(), data=b"", version=3, counts=None, pad=32):
    """Put a file together from its parts, without any check."""
    number = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *number) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % pad) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


GOOD_KEYS = (
    key("general.architecture", STRING, text("llama")),
    key("a.number", U32, struct.pack("<I", 7)),
    key("a.list", ARRAY, struct.pack("<IQ", STRING, 2) + text("one") + text("zwei ü")),
    key("more.numbers", ARRAY, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
    key("a.truth", 7, b"\x01"),
)
GOOD_TENSORS = (entry("w", (32, 2), 8, 0), entry("v", (8,), 0, 96))
GOOD = build(keys=GOOD_KEYS, tensors=GOOD_TENSORS, data=bytes(128))


@pytest.fixture
def write(tmp_path):
    def put(data):
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return path

    return put


def test_a_good_file_is_read(write):
    found = read_directory(write(GOOD))
    assert found.values["general.architecture"] == "llama"
    assert found.values["a.number"] == 7
    assert found.values["a.truth"] is True
    assert found.values["a.list"].texts() == ["one", "zwei ü"]
    assert found.values["more.numbers"].numbers() == (1, -2, 3)
    assert found.tensors["w"].shape == (2, 32)
    assert (found.tensors["w"].kind.name, found.tensors["w"].size) == ("Q8_0", 68)
    assert found.tensors["v"].start == len(GOOD) - 32


def test_an_array_knows_what_it_holds():
    with pytest.raises(ValueError, match="numbers"):
        Array(5, 0, b"").texts()
    with pytest.raises(ValueError, match="texts"):
        Array(STRING, 0, b"").numbers()


def test_what_a_file_is_its_content_tells(tmp_path, write):
    assert is_gguf(write(GOOD).rename(tmp_path / "model.safetensors"))
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "absent")
    assert not is_gguf(write(b"PK\x03\x04"))


def test_the_widths_are_those_of_the_gguf_package():
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, one in TENSOR_TYPES.items():
        assert theirs[number] == (one.name, one.block, one.size)


def test_what_the_gguf_package_writes_is_read_alike(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("texts", [f"token {i}" for i in range(3000)])
    writer.add_float32("half", 0.5)
    writer.add_tensor("m", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("n", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, theirs = read_directory(path), gguf.GGUFReader(path)
    assert found.values["texts"].texts() == theirs.fields["texts"].contents()
    assert found.values["half"] == 0.5
    for one in theirs.tensors:
        assert found.tensors[one.name].start == one.data_offset
        assert found.tensors[one.name].size == one.n_bytes


ONE = (entry("w", (32,), 0, 0),)
HUGE = struct.pack("<Q", 2**63)
BAD = {
    "empty": (b"", "cut short"),
    "another kind of file": (b"PK\x03\x04" + bytes(60), "is not a GGUF file"),
    "only the magic": (b"GGUF", "cut short"),
    "old version": (build(version=1), "is GGUF 1"),
    "big-endian": (build(version=0x03000000), "big-endian"),
    "absurd number of tensors": (build(counts=(2**40, 0)), "claims 1,099,511,627,776 tensors"),
    "absurd number of keys": (build(counts=(0, 2**62)), "keys in"),
    "more keys than there are": (build(keys=GOOD_KEYS, counts=(0, 6), pad=1), "cut short"),
    "key without end": (build(keys=(HUGE + b"abc",), data=bytes(99)), "claims a text"),
    "long key": (build(keys=(key("k" * 70_000, U32, bytes(4)),)), "claims a text of 70,000 bytes"),
    "key that is no text": (build(keys=(key(b"\xff\xfe", U32, bytes(4)),)), "not UTF-8"),
    "key twice": (build(keys=(key("a", U32, bytes(4)),) * 2), "'a' twice"),
    "unknown type": (build(keys=(key("a", 13, bytes(4)),)), "unknown type 13"),
    "text without end": (build(keys=(key("a", STRING, HUGE),)), "'a' claims a text"),
    "text that is none": (build(keys=(key("a", STRING, text(b"\xff")),)), "'a' is not UTF-8"),
    "list of lists": (build(keys=(key("a", ARRAY, struct.pack("<IQ", 9, 1)),)), "unknown type 9"),
    "list of unknown": (build(keys=(key("a", ARRAY, struct.pack("<IQ", 77, 1)),)), "unknown type 77"),
    "endless list": (build(keys=(key("a", ARRAY, struct.pack("<IQ", 4, 2**60)),)), "claims 1,152,921,504"),
    "list longer than the file": (build(keys=(key("a", ARRAY, struct.pack("<IQ", 12, 1000)),)), "cut short"),
    "texts longer than the file": (
        build(keys=(key("a", ARRAY, struct.pack("<IQ", STRING, 3) + text("b")),), pad=1),
        "cut short",
    ),
    "text in a list without end": (
        build(keys=(key("a", ARRAY, struct.pack("<IQ", STRING, 1) + HUGE),), data=bytes(99)),
        "claims a text",
    ),
    "alignment 0": (build(keys=(key("general.alignment", U32, bytes(4)),)), "impossible alignment 0"),
    "alignment 24": (
        build(keys=(key("general.alignment", U32, struct.pack("<I", 24)),)),
        "impossible alignment 24",
    ),
    "alignment that is a text": (
        build(keys=(key("general.alignment", STRING, text("32")),)),
        "impossible alignment '32'",
    ),
    "no dimensions": (build(tensors=(entry("w", (), 0, 0),)), "0 dimensions"),
    "five dimensions": (build(tensors=(entry("w", (1,) * 5, 0, 0),)), "5 dimensions"),
    "dimension 0": (build(tensors=(entry("w", (0,), 0, 0),)), r"impossible shape \(0,\)"),
    "product that overflows": (build(tensors=(entry("w", (2**40, 2**40), 0, 0),)), "impossible shape"),
    "unknown kind": (
        build(tensors=(entry("w", (32,), 99, 0),), data=bytes(128)),
        "type 99, which is not read",
    ),
    "half a block": (build(tensors=(entry("w", (48,), 8, 0),), data=bytes(128)), "no whole blocks of Q8_0"),
    "offset off the grid": (build(tensors=(entry("w", (8,), 0, 8),), data=bytes(128)), "does not lie inside"),
    "offset outside": (build(tensors=(entry("w", (8,), 0, 2**40),), data=bytes(64)), "does not lie inside"),
    "data missing": (build(tensors=ONE, data=bytes(100)), "does not lie inside"),
    "tensor twice": (build(tensors=ONE * 2, data=bytes(256)), "tensor 'w' twice"),
    "overlap": (build(tensors=(*ONE, entry("v", (32,), 0, 64)), data=bytes(256)), "'v' overlaps"),
    "gap": (build(tensors=(*ONE, entry("v", (32,), 0, 192)), data=bytes(512)), "'v' leaves a gap"),
    "bytes of nobody": (build(tensors=ONE, data=bytes(512)), "belong to nothing"),
    "long name": (build(tensors=(entry("w" * 65, (32,), 0, 0),), data=bytes(128)), "claims a text of 65"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_directory_is_refused(name, write):
    data, says = BAD[name]
    path = write(data)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_directory(path)
    assert str(path) in caught.value.what
    assert "\n" not in str(caught.value)


def test_every_cut_is_refused(write):
    end = len(GOOD)
    for length in range(end):
        with pytest.raises(CheckpointError):
            read_directory(write(GOOD[:length]))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_directory(tmp_path / "absent.gguf")


def mutations(data, seed, count):
    """Yield damaged copies: bytes changed, numbers replaced by absurd ones, pieces cut, doubled or moved."""
    dice = random.Random(seed)
    absurd = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**48, 2**63, 2**64 - 1)]
    for _ in range(count):
        found = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(found) or 1)
            how = dice.randrange(5)
            if how == 0 and found:
                found[at] ^= 1 << dice.randrange(8)
            elif how == 1:
                piece = dice.choice(absurd)[: dice.choice((1, 4, 8))]
                found[at : at + len(piece)] = piece
            elif how == 2:
                del found[at : at + dice.randint(1, 40)]
            elif how == 3:
                found[at:at] = found[at : at + dice.randint(1, 40)]
            else:
                found[at:] = found[at : dice.randrange(at, len(found) + 1)]
        yield bytes(found)


def hammer(write, seed, count):
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in mutations(GOOD, seed, count):
        try:
            found = read_directory(write(data))
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # what is accepted lies inside the file
            assert all(one.start + one.size <= len(data) for one in found.tensors.values())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"memory grew by {grown} KiB over files of {len(GOOD)} bytes"
    return refused


def test_mutated_directories_are_refused_in_one_line(write):
    assert hammer(write, seed=1, count=1500) > 1000


@pytest.mark.slow
def test_ten_thousand_mutated_directories_are_refused_in_one_line(write):
    assert hammer(write, seed=2, count=12_000) > 8000


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "é", "日本"], ["a\0b", "\0", "c"], ["\0"]], ids=repr)
def test_an_array_of_texts_gives_them_back(texts):
    data = b"".join(text(one) for one in texts)
    assert Array(STRING, len(texts), data).texts() == texts


def test_a_letter_cut_in_two_between_texts_is_no_text():
    data = b"".join(text(one) for one in (b"\xc3", b"\xa9"))
    with pytest.raises(UnicodeDecodeError):
        Array(STRING, 2, data).texts()
