"""What the village's tests share: one village, and some of its records."""

from __future__ import annotations

import pytest

from stockpot.village import Village


@pytest.fixture(scope="session")
def village() -> Village:
    return Village(seed=0)


@pytest.fixture(scope="session")
def train_texts(village: Village) -> list[str]:
    return [record["text"] for record in village.documents("train", limit=12_000)]


@pytest.fixture(scope="session")
def train_chats(village: Village) -> list[list[dict[str, str]]]:
    return [record["messages"] for record in village.chats("train", limit=12_000)]
