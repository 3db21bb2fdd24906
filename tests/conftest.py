"""What all tests share: one thread, and shape annotations that are checked wherever a test calls what has them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Several threads only wait for each other on tensors this small. Processes that a test starts do the same.
os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch

# Kernels for GPUs run in Triton's interpreter where there is no GPU; it asks when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Before anything imports the model: pytest reads this file first.
_checked = install_import_hook(["stockpot.model", "stockpot.generate.sampling"], "beartype.beartype")

# A job that a shell starts in the background ignores Ctrl-C, and so would every program the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Pause the shape checks: ``torch.compile`` cannot trace through them. Forget what it compiled: it counts how often."""
    import torch

    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def interpreted() -> None:
    """Let Triton's interpreter run our kernels for GPUs."""
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton is not installed, or builds for a GPU")
