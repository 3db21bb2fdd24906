"""Row 29: what each ingredient added, over the cooks' ledgers."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import distinct_bases, gain_of, ledger_of

LINES = (
    ("+ more parameters", "base"),
    ("+ more data", "+ more parameters"),
    ("+ better wording", "+ more data"),
    ("+ few-shot", "+ better wording"),
    ("+ chain of thought", "+ few-shot"),
    ("+ retrieval", "+ chain of thought"),
    ("+ instruction tuning", "+ retrieval"),
)


def measure(material: Material) -> Sequence[Finding]:
    """Read each cook's ledger: shares right, and for learning from comparisons how much the replies are liked."""
    books = [ledger_of(cook, material) for cook in material.cooks]
    bases = [ledger_of(cook, material) for cook in distinct_bases(material.cooks)]
    n, found = len(books[0].questions), []
    for name, over in LINES:
        some = books if name == "+ instruction tuning" else bases
        if all(not book.line(one).skipped for book in some for one in (name, over)):
            gains = [gain_of(book, name, over) for book in some]
            found.append(above(f"share right: {name}, gain over {over}", gains, 0.0, n=n))
    for name in ("+ DPO", "+ RLHF"):
        gains = [e.value for book in books if (e := book.line(name).liked_gain) is not None]
        if len(gains) == len(books):
            found.append(
                above(f"worth of the replies, 0 to 3: {name}, gain over instruction tuning", gains, 0.0, n=n)
            )
    return found


CLAIM = Claim(
    29,
    "soup",
    "Data, wording, questions and human feedback each add something that can be measured",
    "the lecture's parable: the stone makes no soup; the villagers' vegetables do",
    "the ledgers of the cooks: as many questions of 15 kinds as there is time for, one ingredient more in each line",
    measure,
    "Each line is an ingredient, and not every one must help a model of this size: wordings, examples and "
    "steps are things that larger "
    "models profit from.",
)
