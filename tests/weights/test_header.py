"""A weights file's directory is believed only when all of it agrees."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from stockpot.errors import CheckpointError
from stockpot.weights.header import check_safetensors, kind_of

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "I8", "shape": [3], "data_offsets": [16, 19]},
}


def content(header, data=b"\0" * 19, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def check(tmp_path):
    def run(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        return check_safetensors(path)

    return run


def changed(name, **values):
    return {**GOOD, name: {**GOOD[name], **values}}


def test_a_good_directory_is_read(check):
    entries, notes = check(content({"__metadata__": {"format": "pt"}, **GOOD}))
    assert (entries["a"].shape, entries["b"].dtype, notes) == ((2, 2), "I8", {"format": "pt"})


def test_what_the_reference_library_writes_is_read(check):
    tensors = {
        "x": torch.zeros(3, 5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(1.0),
    }
    entries, _ = check(to_bytes(tensors, metadata={"a": "b"}))
    assert {name: entry.shape for name, entry in entries.items()} == {
        "x": (3, 5),
        "empty": (0, 4),
        "number": (),
    }


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b'{"a": 1}', "JSON"),
        (b"hello world, hello", "not a weights file"),
        (content(GOOD, length=10**6), "claims"),
        (content(GOOD)[:30], "claims"),
        (content(b'{"a": '), "cannot be read"),
        (content(b"{\xff}"), "cannot be read"),
        (content(b'{"a":' + b"[" * 200_000), "cannot be read"),
        (content(b'{"a":{"dtype":"I8","shape":[19],"data_offsets":[0,19]},"a":1}'), "twice"),
        (content({**GOOD, "__metadata__": {"a": 1}}), "__metadata__"),
        (content({**GOOD, "c": 5}), "needs dtype"),
        (content(changed("a", more=1)), "needs dtype"),
        (content(changed("a", dtype="F33")), "unknown dtype"),
        (content(changed("a", dtype=["F32"])), "unknown dtype"),
        (content(changed("a", shape=[-2, -2])), "impossible shape"),
        (content(changed("a", shape=[2.0, 2])), "impossible shape"),
        (content(changed("a", shape=[True, 4])), "impossible shape"),
        (content(changed("a", shape=[2**62, 4])), "impossible shape"),
        (content(changed("a", shape=[1] * 17)), "impossible shape"),
        (content(changed("a", shape=[2**40, 2**40])), "does not fill"),
        (content(changed("a", shape=[2, 3])), "does not fill"),
        (content(changed("b", data_offsets=[16, 99])), "outside"),
        (content(changed("b", data_offsets=[19, 16])), "outside"),
        (content(changed("b", data_offsets=[16])), "outside"),
        (content(changed("b", data_offsets=[10, 13])), "overlaps"),
        (content(changed("b", shape=[2], data_offsets=[17, 19])), "gap"),
        (content(GOOD, data=b"\0" * 25), "belong to nothing"),
    ],
)
def test_a_directory_that_contradicts_itself_is_refused(check, data, told):
    with pytest.raises(CheckpointError, match=told):
        check(data)


def test_a_directory_as_long_as_a_pickles_first_bytes_is_not_one(tmp_path):
    # 0x0480 bytes: the file begins 80 04, like a pickle of protocol 4.
    path = tmp_path / "file"
    path.write_bytes(content(json.dumps(GOOD).encode().ljust(0x0480)))
    assert kind_of(path) == "safetensors"
    assert check_safetensors(path)[0].keys() == GOOD.keys()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_are_read_or_refused_never_worse(check, data):
    raw = bytearray(content(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        if kind == "flip" and raw:
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at:]
        else:
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        entries, _ = check(bytes(raw))
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert sum(entry.end - entry.start for entry in entries.values()) <= len(raw)
