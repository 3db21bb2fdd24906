"""What steers a drawing: the same small diffusion model on four kinds of text, judged by a classifier with its own error.

    .venv/bin/python benchmarks/drawing.py --out runs/drawing [--seeds 0 1 2] [--minutes 16] [--minilm minilm]

For each seed: an encoder is pretrained on the village's texts and scenes' descriptions; then the denoiser is trained with (a)
that encoder's states, (b) MiniLM's, (c) one-hot words with their places, (d) nothing, for the same steps on the same pictures
and noise. Captions of held-out scenes are drawn, half of them with a pair of colour and shape that was never shown. A folder
that is there already is used as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stockpot as sp
from stockpot.data.captions import CAPTION_PROMPT
from stockpot.image import save_png
from stockpot.judge.drawings import SceneReader, judge_drawings, train_scene_reader
from stockpot.run import Run
from stockpot.village import Village
from stockpot.village.scenes import paint

WHOLE = 16.0  # minutes of one seed at the default steps, one core
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's 97.5 % points, n - 1 degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=WHOLE, help="of one seed, about, on one core")
    parser.add_argument("--limit", type=int, default=200, help="pictures drawn")
    parser.add_argument("--minilm", default="minilm", help="the other encoder")
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    reader = train_scene_reader()
    found = [_seed(seed, options.out / f"seed-{seed}", reader, options) for seed in options.seeds]
    print(_report(found, options))


def _seed(seed: int, folder: Path, reader: SceneReader, options: argparse.Namespace) -> dict[str, Any]:
    file = folder / "scores.json"
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    share = options.minutes / WHOLE
    encoder = _encoder(folder, seed, max(20, round(300 * share)))
    scenes = list(Village(seed).scenes("val", options.limit))
    captions = [scene.facts.caption for scene in scenes]
    painted = np.stack([paint(scene) for scene in scenes])
    found = {"painted": _scored(reader, painted, scenes)}
    sheet = [_strip(painted)]
    for name, source in {
        "own encoder": encoder, "MiniLM": options.minilm, "one-hot words": "words", "nothing": "nothing",
    }.items():  # fmt: skip
        began = time.perf_counter()
        out = folder / name.replace(" ", "-")
        if not (out / "manifest.json").is_file() or Run.open(out).manifest["status"] != "done":
            print(f"{out} …", file=sys.stderr, flush=True)
            config = sp.DrawConfig(
                data=f"village:scenes:{seed}:8000",
                encoder=source,
                loop={"steps": max(20, round(1_000 * share)), "checkpoint_every": 10_000},
                seed=seed,
            )
            sp.train_draw(config, out=out, resume=(out / "manifest.json").is_file())
        drawn = sp.draw(out, captions, guidance=options.guidance, seed=seed)
        found[name] = _scored(reader, drawn, scenes) | {"seconds": time.perf_counter() - began}
        sheet.append(_strip(drawn))
    save_png(np.concatenate(sheet, 0), folder / "sheet.png")
    (folder / "captions.txt").write_text("\n".join(captions[:12]) + "\n", encoding="utf-8")
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _encoder(folder: Path, seed: int, steps: int) -> str:
    """Pretrain an encoder that knows the words of scenes, but has seen none."""
    out = folder / "encoder"
    if (out / "manifest.json").is_file() and Run.open(out).manifest["status"] == "done":
        return str(out)
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.jsonl"
    lines = [record["text"] for record in Village(seed).documents(limit=6_000)]
    drawn = Village(seed).scenes("train", 20_000, start=100_000)
    lines += [scene.facts.caption for scene in drawn] + [CAPTION_PROMPT]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    sp.train_tokenizer(sp.TokenizerConfig(data=str(texts), vocab_size=2048), out=folder / "tokenizer")
    config = sp.PretrainConfig(
        data=str(texts),
        tokenizer=str(folder / "tokenizer"),
        objective="masked",
        model=sp.encoder(layers=4, dim=128, heads=4, context=64, vocab_size=2048),
        loop=sp.LoopConfig(steps=steps, batch_tokens=2048, validate_every=steps, checkpoint_every=steps),
        seed=seed,
    )
    print(f"{out} …", file=sys.stderr, flush=True)
    sp.pretrain(config, out=out)
    return str(out)


def _scored(reader: SceneReader, pixels: np.ndarray, scenes: Sequence[Any]) -> dict[str, Any]:
    values = {}
    for group, is_new in (("", None), (", known pairs", False), (", new pairs", True)):
        places = [at for at, scene in enumerate(scenes) if is_new in (None, scene.is_held_out)]
        reading = judge_drawings(reader, pixels[places], [scenes[at] for at in places])
        values[f"all right{group}"] = reading.all_right
        values |= {} if group else reading.attributes
    return {
        "scores": {name: [one.value, one.low, one.high, one.n] for name, one in values.items()},
        "chance": {name: one.chance for name, one in values.items()},
    }


def _strip(pixels: np.ndarray, count: int = 12, times: int = 2) -> np.ndarray:
    row = np.concatenate(list(pixels[:count]), 1)
    return np.kron(row, np.ones((times, times, 1), np.uint8))


def _report(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    names = [name for name in found[0] if "scores" in found[0][name]]
    lines = [f"| | {' | '.join(names)} | chance |", "|---|" + "---:|" * (len(names) + 1)]
    for metric in found[0]["painted"]["scores"]:
        cells = [_cell([one[name]["scores"][metric] for one in found]) for name in names]
        chance = found[0]["painted"]["chance"][metric]
        lines.append(f"| {metric} | {' | '.join(cells)} | {'' if chance is None else f'{chance:.2f}'} |")
    if len(found) > 1:
        lines += ["", *_differences(found)]
    seconds = [f"{name} {found[0][name]['seconds']:.0f}" for name in names if "seconds" in found[0][name]]
    lines.append(f"\nSeconds of seed {options.seeds[0]}: {', '.join(seconds)}. Seeds: {len(found)}.")
    return "\n".join(lines)


def _differences(found: Sequence[dict[str, Any]]) -> list[str]:
    """Compare kinds of text on the same seed: mean and Student's interval over the seeds."""
    pairs = (("own encoder", "nothing"), ("own encoder", "one-hot words"), ("MiniLM", "one-hot words"))
    lines = [
        f"| | {' | '.join(f'{one} − {other}' for one, other in pairs)} |",
        "|---|" + "---:|" * len(pairs),
    ]
    for metric in found[0]["painted"]["scores"]:
        cells = []
        for one, other in pairs:
            gains = [seed[one]["scores"][metric][0] - seed[other]["scores"][metric][0] for seed in found]
            cells.append(f"{statistics.mean(gains):+.3f} ± {_half(gains):.3f}")
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return lines


def _half(values: Sequence[float]) -> float:
    return T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def _cell(scores: Sequence[Sequence[float]]) -> str:
    values = [one[0] for one in scores]
    if len(values) == 1:
        return f"{values[0]:.3f} [{scores[0][1]:.3f}, {scores[0][2]:.3f}] n={scores[0][3]}"
    return f"{statistics.mean(values):.3f} ± {_half(values):.3f} ({' '.join(f'{one:.2f}' for one in values)})"


if __name__ == "__main__":
    main()
