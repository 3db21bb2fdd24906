from __future__ import annotations

import signal
import threading

import pytest

from stockpot.train.guard import StopWish


def test_a_signal_is_a_wish_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopWish() as wish:
        assert not wish.is_set
        signal.raise_signal(signal.SIGTERM)
        assert wish.is_set
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
    found = []

    def use():
        with StopWish() as wish:
            found.append((wish.is_set, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]
