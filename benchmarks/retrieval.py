"""How well and how fast passages are found.

    .venv/bin/python benchmarks/retrieval.py quality --data DIR --encoder minilm
    .venv/bin/python benchmarks/retrieval.py query --passages 100000
    .venv/bin/python benchmarks/retrieval.py build --data DIR --encoder FOLDER --dtype bfloat16

``quality``: nDCG@10 and recall@k by words, by vectors and by both. ``query``: median milliseconds. ``build``: passages a second,
beside the loop of a plain script.

Quality is computed by ir-measures (``pip install ir-measures``; trec_eval's formulas: the gain is the grade); intervals are 95 %
over queries. ``--judged FILE`` adds two columns in the form in which values for ``dbpedia`` are published.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import stockpot as sp
from stockpot.prompt.store import COLUMNS, Store

SETS = {
    "cranfield": ("cranfield_docs", "cranfield_queries"),
    "xquad-en": ("xquad_en_passages", "xquad_en_questions"),
    "dbpedia": ("dbpedia_docs", "dbpedia_queries"),
    "xquad-de": ("xquad_de_passages", "xquad_de_questions"),
}


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def gains(name: str, query: dict[str, Any]) -> dict[str, int]:
    """Give each relevant passage its grade, larger is better."""
    if "pid" in query:
        return {query["pid"]: 1}
    if name == "cranfield":  # 1 = best … 4; 5 and −1 are not relevant
        return {pid: int(5 - grade) for pid, grade in query["relevant"] if 1 <= grade <= 4}
    return {pid: int(grade) for pid, grade in query["relevant"] if grade > 0}


def quality(args: argparse.Namespace) -> None:
    import ir_measures
    from ir_measures import R, nDCG

    measures = [nDCG @ 10, R @ 1, R @ 5, R @ 10]
    for name in args.sets or SETS:
        docs, queries = SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            config = sp.IndexConfig(encoder=args.encoder, chunk_tokens=256, overlap_tokens=0)
            index, report = sp.index(args.data / f"{docs}.jsonl.gz", Path(folder) / "index", config)
            asked = [one for one in read(args.data / f"{queries}.jsonl.gz") if gains(name, one)]
            asked = asked[: args.limit]
            wanted = {one["qid"]: gains(name, one) for one in asked}
            for how in ("words", "vectors", "hybrid"):
                found = {one["qid"]: ranked(index, one["question"], how) for one in asked}
                cells = []
                for measure in measures:
                    scores = [one.value for one in ir_measures.iter_calc([measure], wanted, found)]
                    half = 1.96 * statistics.stdev(scores) / len(scores) ** 0.5
                    cells.append(f"{statistics.fmean(scores):.3f} ± {half:.3f}")
                if args.judged:
                    cells += as_published(found, args.judged)
                print(f"| {name} | {how} | {' | '.join(cells)} | {len(asked)} |", flush=True)
            print(f"  ({report.passages:,} passages in {report.seconds:.1f} s)", flush=True)


def ranked(index: sp.Index, question: str, how: Any) -> dict[str, float]:
    """Search, and give each passage that is found a score that falls with its rank."""
    hits = index.search(question, 40, how=how)
    places = dict.fromkeys(hit.place for hit in hits)  # a passage may be cut in several
    return {place: 1.0 / rank for rank, place in enumerate(places, 1)}


def as_published(found: dict[str, dict[str, float]], judged: Path) -> list[str]:
    """Score as agentset-ai/embedding-leaderboard does for dbpedia; ``judged`` is its qrels/test.tsv.

    Its nDCG@10 takes the best order of what was found as ideal; its recall@10 is of all that was judged, relevant or not.
    """
    grades: dict[str, dict[str, int]] = {}
    for line in judged.read_text(encoding="utf-8").splitlines()[1:]:
        *ids, grade = line.split("\t")
        grades.setdefault(ids[0], {})[ids[-1]] = int(grade)
    orders, recalls = [], []
    for query, known in grades.items():
        best = list(found[query])[:10]
        values = [known.get(place, 0) for place in best]
        ideal = discounted(sorted(values, reverse=True))
        orders.append(discounted(values) / ideal if ideal else 0.0)
        recalls.append(len(set(best) & set(known)) / len(known))
    return [f"{statistics.fmean(orders):.3f}", f"{statistics.fmean(recalls):.3f}"]


def discounted(values: list[int]) -> float:
    return sum(value / math.log2(place + 2) for place, value in enumerate(values))


def query(args: argparse.Namespace) -> None:
    dice = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(30_000)])
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    centres = dice.standard_normal((200, args.dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, args.dim)
        for start in range(0, args.passages, 10_000):
            count = min(10_000, args.passages - start)
            vectors = centres[dice.integers(0, 200, count)] + 0.7 * dice.standard_normal(
                (count, args.dim)
            ).astype(np.float32)
            texts = [" ".join(row) for row in dice.choice(words, (count, 60), p=weights)]
            rows = [
                dict.fromkeys(COLUMNS, "x") | {"id": str(start + i), "text": text}
                for i, text in enumerate(texts)
            ]
            store.add(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        begun = time.perf_counter()
        store.refresh()
        print(f"{len(store):,} passages; indexes built in {time.perf_counter() - begun:.1f} s")
        timed: dict[str, list[float]] = {"vectors": [], "words": [], "hybrid": []}
        for number in range(args.queries + 5):
            vector = centres[number % 200] + 0.7 * dice.standard_normal(args.dim).astype(np.float32)
            text = " ".join(dice.choice(words, 8, p=weights))
            begun = time.perf_counter()
            store.by_vector(vector, 32)
            middle = time.perf_counter()
            store.by_text(text, 32)
            ended = time.perf_counter()
            if number >= 5:  # the first ones open files
                for way, spent in (
                    ("vectors", middle - begun),
                    ("words", ended - middle),
                    ("hybrid", ended - begun),
                ):
                    timed[way].append(1000 * spent)
        for way, values in timed.items():
            print(
                f"{way}: median {statistics.median(values):.1f} ms, 90 % {sorted(values)[int(0.9 * len(values))]:.1f} ms"
            )


def build(args: argparse.Namespace) -> None:
    """Index the same passages with ours and with the loop that a plain script has: float32 model, batches of 32."""
    docs = [one["text"] for one in read(args.data / "xquad_en_passages.jsonl.gz")][: args.limit]
    bundle = sp.load(args.encoder, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in docs), encoding="utf-8")
        config = sp.IndexConfig(encoder=args.encoder, chunk_tokens=256, overlap_tokens=0)
        begun = time.perf_counter()
        _, report = sp.index(path, Path(folder) / "index", config, encoder=bundle)
        ours = time.perf_counter() - begun
    print(f"stockpot index: {report.passages} passages, {report.passages / ours:.0f} a second")
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(args.encoder),
        AutoModel.from_pretrained(args.encoder).eval(),
    )
    begun, parts = time.perf_counter(), []
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))  # as sentence-transformers does
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            texts = [docs[i] for i in order[start : start + 32]]
            batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)))
    whole = torch.cat(parts)
    theirs = time.perf_counter() - begun
    speed = len(whole) / theirs
    print(
        f"transformers, float32, batches of 32: {speed:.0f} a second; ratio {report.passages / ours / speed:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["quality", "query", "build"])
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--sets", nargs="*", choices=list(SETS))
    parser.add_argument(
        "--judged", type=Path, help="qrels/test.tsv of the published values; with --sets dbpedia"
    )
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dim", type=int, default=384)
    args = parser.parse_args()
    {"quality": quality, "query": query, "build": build}[args.what](args)


if __name__ == "__main__":
    main()
