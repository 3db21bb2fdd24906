"""How data is read: the settings, and the account of what was read and what was not.

Nothing is left out silently: a `ReadReport` counts every record that was refused, mended or passed over, and
stops the reading when too many are bad.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from stockpot.config import Settings
from stockpot.errors import DataError

__all__ = ["ReadConfig", "ReadReport", "shown"]

_SHOWN = 20
_JUDGED_EARLY = 1000  # records after which reading stops as soon as too many are bad
_log = logging.getLogger(__name__)


def shown(text: str, limit: int = 80) -> str:
    """Make a piece of a file fit for a message: one line, no control characters, not long."""
    line = "".join(sign if sign.isprintable() else "?" for sign in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


class ReadConfig(Settings):
    """How files become records."""

    encoding_errors: Literal["strict", "replace", "skip"] = Field(
        "strict",
        description="text that is not UTF-8: strict stops, replace puts � in its place, "
        "skip leaves the record out",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description='what stands between the documents of a text file, such as "\\n\\n" or "<|endoftext|>"; '
        "its \\n is found as \\r\\n, too; none: the file is one document",
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of bad records above which reading stops"
    )
    max_line_bytes: int = Field(
        64 << 20, ge=1024, description="longest line, cell or record; longer ones are bad"
    )
    max_document_bytes: int = Field(
        4 << 20,
        ge=64,
        description="text documents longer than this are cut, at a line's end where there is one",
    )
    max_unpack_ratio: int = Field(
        200, ge=1, description="unpacked bytes for each packed byte above which a file counts as a bomb"
    )


@dataclass
class ReadReport:
    """What reading met.

    Args:
        records: records that were given out.
        bad: records that were refused; ``problems`` tells of the first 20.
        replaced: records in which invalid text became �.
        skipped: records left out because their text is not UTF-8.
        files: streams that were read.
        empty: names of those without a record.
        left_out: names of members of archives that are of no known form.
        cut: records that were longer than a row and have lost their end.
        overlong: records left out since they were longer than a row.
    """

    records: int = 0
    bad: int = 0
    replaced: int = 0
    skipped: int = 0
    files: int = 0
    empty: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    cut: int = 0
    overlong: int = 0
    problems: list[DataError] = field(default_factory=list)

    def reject(self, error: DataError, config: ReadConfig) -> None:
        """Count a bad record, and stop when many have been read and too many are bad.

        Raises:
            DataError: telling of the first one.
        """
        self.bad += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(error)
        if self.records + self.bad >= _JUDGED_EARLY:
            self.judge(config)

    def judge(self, config: ReadConfig) -> None:
        """Stop if too many records are bad.

        Raises:
            DataError: telling of the first one.
        """
        seen = self.records + self.bad
        if self.bad <= seen * config.max_bad_share:
            return
        first = self.problems[0]
        if self.bad == 1 and seen == 1:
            raise first
        raise DataError(
            f"{first.what} ({self.bad} of {seen} records are bad, {self.bad / seen:.1%}; "
            f"at most {config.max_bad_share:.1%} may be.)",
            f"{first.todo} Mend or remove them, or raise reading.max_bad_share.".strip(),
        )

    def tell(self) -> None:
        """Log what was left out or changed, if anything was."""
        if self.bad:
            _log.warning(
                "%d of %d records are bad and left out: %s", self.bad, self._seen, self.problems[0].what
            )
        if self.replaced:
            _log.warning("In %d records invalid UTF-8 became �.", self.replaced)
        if self.skipped:
            _log.warning("%d records are not UTF-8 and left out.", self.skipped)
        for what, names in (("empty", self.empty), ("of an unknown form and left out", self.left_out)):
            if names:
                subject = "1 file is" if len(names) == 1 else f"{len(names)} files are"
                _log.warning("%s %s: %s", subject, what, ", ".join(names[:3]))

    @property
    def _seen(self) -> int:
        return self.records + self.bad
