"""The public face: complete, documented, lazy and fast."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot

NAMES = sorted(set(stockpot.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_exists_and_says_what_it_is(name):
    value = getattr(stockpot, name)
    first_line = (inspect.getdoc(value) or "").split("\n")[0]
    assert first_line.endswith((".", ":")), f"{name}: {first_line!r}"
    home = value.__name__ if inspect.ismodule(value) else value.__module__
    assert home.startswith("stockpot."), f"{name} comes from {home}"


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(getattr(stockpot, name))])
def test_every_public_method_is_documented(name):
    value = getattr(stockpot, name)
    own = [m for m, f in vars(value).items() if not m.startswith("_") and inspect.isfunction(f)]
    assert [m for m in own if not inspect.getdoc(getattr(value, m))] == []


def test_names_are_listed_once_and_in_order():
    assert list(stockpot._PLACES) == sorted(stockpot._PLACES)
    assert len(set(stockpot.__all__)) == len(stockpot.__all__)


def test_each_name_is_exported_by_its_room():
    for name, place in stockpot._PLACES.items():
        room = sys.modules.get(place) or __import__(place, fromlist=[name])
        assert name in room.__all__, f"{name} is not in {place}.__all__"


def test_type_checkers_see_the_same_names_in_the_same_rooms():
    """Names that are imported when they are first used are Any to mypy and to editors; the stub tells them."""
    stub = Path(stockpot.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    told = re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE)
    assert {name: room for room, name in told} == stockpot._PLACES
    assert len(told) == len(stockpot._PLACES)


def test_every_error_is_public():
    from stockpot import errors

    assert set(errors.__all__) <= set(stockpot.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tokeniser'"):
        _ = stockpot.tokeniser


def test_dir_lists_the_public_names():
    assert set(stockpot.__all__) <= set(dir(stockpot))


def test_importing_is_lazy():
    code = (
        "import sys, stockpot; print(sorted({'torch', 'tokenizers', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_importing_takes_less_than_three_tenths_of_a_second():
    code = "import time; t = time.process_time(); import stockpot; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3
