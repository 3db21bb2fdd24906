"""Measure sentence vectors: MiniLM through the engine, in floats and in 8 bits, beside sentence-transformers on the same folder.

    .venv/bin/python benchmarks/embedding.py TEXTS [--model minilm] [--sentences 256] [--rounds 5] [--threads 2]

TEXTS is a file with one sentence a line, or JSON lines with "text". Contestants take turns in one process; the median of the
rounds counts, ratios are those of the medians. All turn the same sentences into vectors, lengths mixed as they come, as
`encode` and `Engine.embed` are called. The largest distance of the vectors is printed, so that speed is never bought unseen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stockpot as sp
from stockpot.device import describe
from stockpot.weights.known import find_known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sentences = _sentences(options.texts, options.sentences)
    contestants = _contestants(options.model)
    vectors = {
        name: embed(sentences) for name, embed in contestants.items()
    }  # the first round counts for nothing
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, embed in contestants.items():
            began = time.perf_counter()
            embed(sentences)
            seconds[name].append(time.perf_counter() - began)
    words = [len(sentence.split()) for sentence in sentences]
    print(json.dumps({"machine": describe(torch.device("cpu")), "sentences": len(sentences)}))
    print(f"words a sentence: {min(words)} to {max(words)}, mean {statistics.mean(words):.1f}")
    best = statistics.median(seconds["stockpot float32"])
    for name, times in seconds.items():
        rates = [len(sentences) / one for one in times]
        ours = vectors["stockpot float32"]
        cosine, apart = (vectors[name] * ours).sum(1).min(), (vectors[name] - ours).abs().max()
        print(
            f"{name:24} {statistics.median(rates):8.1f} sentences/s ({min(rates):.1f} to {max(rates):.1f}); "
            f"{statistics.median(times) / best:.2f} times our float32's time; least cosine {cosine:.6f}, "
            f"largest distance {apart:.1e}"
        )


def _contestants(model: str) -> dict[str, Callable[[list[str]], torch.Tensor]]:
    found: dict[str, Callable[[list[str]], torch.Tensor]] = {
        "stockpot float32": sp.Engine(sp.load(model)).embed,
        "stockpot bfloat16": sp.Engine(sp.load(model, dtype="bfloat16")).embed,
        "stockpot int8": sp.Engine(sp.load(model, quantize="int8")).embed,
    }
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        print("sentence-transformers is not installed")
        return found
    theirs: Any = SentenceTransformer(str(find_known(model) or model), device="cpu")
    found["sentence-transformers"] = lambda texts: theirs.encode(
        texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return found


def _sentences(path: Path, count: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] if line.startswith("{") else line for line in lines[: 4 * count]]
    return [text for text in texts if text.strip()][:count]


if __name__ == "__main__":
    main()
