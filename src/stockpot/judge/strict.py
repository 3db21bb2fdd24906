"""Pages that stand alone under a strict content security policy: nothing of what they show can run, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import re

__all__ = ["allowing_its_own"]


def allowing_its_own(page: str) -> str:
    """Put the hashes of a page's own script and style for ``@SCRIPT@`` and ``@STYLE@`` of its policy; nothing else may run."""
    script, style = (re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    assert script is not None and style is not None
    hashes = [base64.b64encode(hashlib.sha256(one[1].encode()).digest()).decode() for one in (script, style)]
    return page.replace("@SCRIPT@", f"'sha256-{hashes[0]}'").replace("@STYLE@", f"'sha256-{hashes[1]}'")
