"""What all tests share: shape annotations of the tensor-pure room are checked wherever a test calls it."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Before anything imports the model: pytest reads this file first.
_checked = install_import_hook(["stockpot.model", "stockpot.generate.sampling"], "beartype.beartype")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Pause the shape checks: ``torch.compile`` cannot trace through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
