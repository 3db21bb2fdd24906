"""Say which benchmarks there are, how to run each, and which peers are present on this machine.

    .venv/bin/python benchmarks/peers.py      (or: make bench)

A peer is a package, or a clone named on the command line of its benchmark. Nothing is run or installed here.
"""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

PACKAGES: dict[str, tuple[str, ...]] = {
    "drawing.py": ("diffusers",),
    "embedding.py": ("sentence-transformers",),
    "generate.py": ("transformers",),
    "judging.py": ("lm-eval", "transformers"),
    "hosts.py": (),
    "post_training.py": ("trl", "peft", "transformers"),
    "pretraining.py": (),
    "prompting.py": ("peft", "transformers"),
    "quantised.py": ("llama-cpp-python", "transformers"),
    "real_chat.py": (),
    "retrieval.py": ("transformers",),
    "serving.py": (),
    "frozen_base.py": (),
    "small_against_large.py": (),
    "time_to_loss.py": (),
    "tokenizing.py": ("tokenizers", "tiktoken", "sentencepiece", "riptoken", "rustbpe", "bpeasy", "gigabpe"),
}
CLONES: dict[str, tuple[str, ...]] = {
    "images.py": ("none: the settings are compared with each other",),
    "hosts.py": ("none: an undisturbed run of our own",),
    "pretraining.py": ("a clone of nanoGPT: --nanogpt PATH",),
    "real_chat.py": ("none: the model before each stage",),
    "serving_abuse.py": ("none: the same server undisturbed",),
    "serving.py": ("a Python that has llama-cpp-python[server]: --peer PYTHON",),
    "frozen_base.py": ("none: the same adapters beside floats",),
    "small_against_large.py": ("none: both sides are made here",),
    "votes.py": ("none: the model before the votes",),
    "whole_pass.py": ("none: the same model in torch, layer by layer",),
    "time_to_loss.py": ("a clone of nanoGPT: --nanogpt PATH", "a clone of nanochat: --nanochat PATH"),
}


def main() -> None:
    here = Path(__file__)
    for file in sorted(here.parent.glob("*.py")):
        if file != here:
            print("\n".join(describe(file)), end="\n\n")
    print("Missing packages that the project pins: .venv/bin/pip install -c constraints.txt -e '.[bench]'")


def describe(file: Path) -> list[str]:
    """Return the lines about one benchmark: what it measures, how it is run, and its peers."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    purpose = text.partition("\n")[0]
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith(".venv/bin/python")]
    lines = [file.name, f"  {purpose}", *(f"  {command}" for command in commands)]
    lines += [f"  peer  {name}  {version(name)}" for name in PACKAGES.get(file.name, ())]
    return lines + [f"  peer  {clone}" for clone in CLONES.get(file.name, ())]


def version(package: str) -> str:
    """Return the installed version of a package, or say that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
