"""Whether programs can be confined here, and if not, what is missing."""

from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.judge.sandbox import check_sandbox

__all__ = ["confined"]


def _why_not() -> str:
    try:
        check_sandbox()
    except ConfigError as error:
        return str(error)
    return ""


confined = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
