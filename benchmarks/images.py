"""What eyes need: the same frozen language model with an untrained projector, a trained one, adapters, and all of it trained.

    .venv/bin/python benchmarks/images.py scenes --out runs/images [--seeds 0 1 2] [--minutes 5]
    .venv/bin/python benchmarks/images.py emoji --pictures NOTO.zip TWEMOJI.zip --out runs/emoji [--model smollm2]

``scenes``: for each seed one tokenizer, one language model pretrained on the village's texts and on scenes' descriptions, one
tower; then every setting for the same steps on the same captions, judged on scenes of which half show pairs of colour and shape
that nothing was trained on. ``emoji``: a given model stays frozen; trained on the first archive's drawings, tested on the
second's, another vendor's, of names that training had (in the other drawing) and names it never had. ``--minutes`` shrinks the
steps. A folder that is there already is used as it is, so the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import stockpot as sp
from stockpot.data.captions import CAPTION_PROMPT
from stockpot.model.bottleneck import Bottleneck
from stockpot.run import Run
from stockpot.village import Village
from stockpot.village.scenes import scene_questions

SETTINGS = ("none", "linear", "bottleneck", "full")
METRICS = (
    "caption exact",
    "caption colour",
    "caption shape",
    "caption count",
    "caption relation",
    "question answered",
)
SWAPS = ("follows: own over other", "nats gained over other", "nats gained over blank")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's 97.5 % points, n - 1 degrees of freedom
SHOWN = 6  # captions of the first seed beside the truth
WHOLE = 5.0  # minutes of one seed at the default steps, one core


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("scenes", "emoji"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=WHOLE, help="of one seed, about, on one core")
    parser.add_argument("--limit", type=int, default=200, help="pictures asked about")
    parser.add_argument("--pictures", type=Path, nargs=2, help="emoji: archives to train on and to test on")
    parser.add_argument("--model", default="smollm2", help="emoji: the language model")
    parser.add_argument(
        "--tower", choices=("captions", "words"), default="words", help="what the tower learns"
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    options = parser.parse_args()
    run = _scenes if options.what == "scenes" else _emoji
    found = [run(seed, options.out / f"seed-{seed}", options) for seed in options.seeds]
    print(_report(found, options))


# --- village scenes ---


def _scenes(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    share = options.minutes / WHOLE
    began = time.perf_counter()
    base = _language_model(folder, seed, max(20, round(500 * share)))
    found: dict[str, Any] = {"language model s": time.perf_counter() - began}
    tower = None
    for setting in options.settings:
        began = time.perf_counter()
        config = sp.AlignImageConfig(
            model=base,
            data=f"village:scenes:{seed}:{max(500, round(6_000 * min(1.0, share)))}",
            vision=tower,
            adapters=setting,
            bottleneck=Bottleneck(at=("ffn", "attention")),
            rows=48,
            tower={
                "layers": 3,
                "dim": 64,
                "learns": options.tower,
                "loop": {"steps": max(20, round(600 * share)), "batch_tokens": 96},
            },
            loop=_loop(max(20, round(400 * share)), 1536),
            seed=seed,
        )
        run = _stage(folder / setting, sp.align_image, config)
        tower = tower or str(folder / setting / "tower")
        file = folder / f"{setting}.json"
        found[setting] = _timed(file, _judged(file, run, f"village:scenes/val:{seed}", options), began)
    return found


def _loop(steps: int, tokens: int) -> dict[str, int]:
    """Train without stopping to look: one validation, at the end."""
    return {"steps": steps, "batch_tokens": tokens, "validate_every": steps, "checkpoint_every": steps}


def _language_model(folder: Path, seed: int, steps: int) -> str:
    """Pretrain a small decoder that knows the words of scenes, but has seen none."""
    texts = folder / "texts.jsonl"
    if not texts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [record["text"] for record in Village(seed).documents(limit=4_000)]
        for number, scene in enumerate(Village(seed).scenes("train", 8_000, start=100_000)):
            asked = scene_questions(scene)
            question, answer, _ = asked[number % len(asked)]
            lines += [f"{CAPTION_PROMPT} {scene.facts.caption}", f"Question: {question} Answer: {answer}"]
        texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        sp.train_tokenizer(sp.TokenizerConfig(data=str(texts), vocab_size=1024), out=tokenizer)
    config = sp.PretrainConfig(
        data=str(texts),
        tokenizer=str(tokenizer),
        model=sp.decoder(layers=3, dim=128, heads=4, context=96, vocab_size=1024),
        loop=sp.LoopConfig(**_loop(steps, 2048)),
        seed=seed,
    )
    return _stage(folder / "base", sp.pretrain, config)


# --- emoji ---


def _emoji(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train on one vendor's drawings; test on another's, apart by whether training had the name."""
    share = options.minutes / WHOLE
    sets = _unpack(options)
    found: dict[str, Any] = {}
    tower = None
    for setting in options.settings:
        began = time.perf_counter()
        config = sp.AlignImageConfig(
            model=options.model,
            data=str(sets["train"]),
            vision=tower,
            adapters=setting,
            bottleneck=Bottleneck(),
            tower={
                "image_size": 64,
                "patch_size": 16,
                "dim": 128,
                "learns": options.tower,
                "loop": {"steps": max(20, round(500 * share))},
            },
            loop=_loop(max(20, round(300 * share)), 1024),
            seed=seed,
        )
        run = _stage(folder / setting, sp.align_image, config)
        tower = tower or str(folder / setting / "tower")
        for name in ("other vendor, known names", "other vendor, new names"):
            file = folder / f"{setting}, {name}.json"
            found.setdefault(setting, {})[name] = _timed(
                file, _judged(file, run, str(sets[name]), options), began
            )
        found[setting]["seconds"] = found[setting]["other vendor, new names"]["seconds"]
    return found


def _unpack(options: argparse.Namespace) -> dict[str, Path]:
    """Write the archives' pictures beside captions: a folder to train on, and two to test on.

    A third of the second archive's names are kept from training in the first one's drawing too.
    """
    trained, other = (_read_archive(archive) for archive in options.pictures)
    kept = {name for name, _, _ in other if not zlib.crc32(name.encode()) % 3}
    sets: dict[str, list[tuple[str, str, bytes]]] = {
        "train": [one for one in trained if one[0] not in kept],
        "other vendor, known names": [one for one in other if one[0] not in kept],
        "other vendor, new names": [one for one in other if one[0] in kept],
    }
    folders = {name: options.out / "pictures" / name.replace(" ", "-") for name in sets}
    for name, listed in sets.items():
        folders[name].mkdir(parents=True, exist_ok=True)
        for caption, file, content in listed:
            (folders[name] / file).write_bytes(content)
            (folders[name] / file).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folders


def _read_archive(archive: Path) -> list[tuple[str, str, bytes]]:
    """Give name, file and content of every picture."""
    with zipfile.ZipFile(archive) as opened:
        inside = {Path(name).name: name for name in opened.namelist()}
        records = map(json.loads, opened.read("captions.jsonl").decode("utf-8").splitlines())
        return [(one["name"].lower(), one["file"], opened.read(inside[one["file"]])) for one in records]


# --- what both do ---


def _judged(file: Path, run: str, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Score a run once; its manifest adds what was trained and what it did to plain text."""
    if not file.is_file():
        report = sp.evaluate_images(run, data, limit=options.limit)
        manifest = Run.open(run).manifest
        value = {
            "scores": {
                f"{row.task}: {row.metric}": [
                    row.estimate.value,
                    row.estimate.low,
                    row.estimate.high,
                    row.estimate.n,
                ]
                for row in report.rows
            },
            "chance": {f"{row.task}: {row.metric}": row.estimate.chance for row in report.rows},
            "trained": manifest["trained_parameters"],
            "frozen": manifest["is_frozen"],
            "text_loss": manifest["text_loss"],
            "looking": manifest["pictures"],
            "samples": [[one.written, one.truth] for one in report.pictures[:8]],
        }
        file.write_text(json.dumps(value, indent=1), encoding="utf-8")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _timed(file: Path, found: dict[str, Any], began: float) -> dict[str, Any]:
    """Keep how long a setting took when it was made."""
    if "seconds" not in found:
        found["seconds"] = time.perf_counter() - began
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _stage(folder: Path, stage: Callable[..., Any], config: Any) -> str:
    if not (folder / "manifest.json").is_file() or Run.open(folder).manifest["status"] != "done":
        print(f"{folder} …", file=sys.stderr, flush=True)
        stage(config, out=folder, resume=(folder / "manifest.json").is_file())
    return str(folder)


def _report(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Give each score's mean over seeds, with Student's interval over them (one seed: the items' own)."""
    groups = (
        {"": lambda one: one}
        if options.what == "scenes"
        else {
            name: (lambda one, name=name: one[name])
            for name in ("other vendor, known names", "other vendor, new names")
        }
    )
    lines = []
    for title, pick in groups.items():
        first = pick(found[0][options.settings[0]])
        lines += [
            f"\n{title}\n",
            f"| | {' | '.join(options.settings)} | chance |",
            "|---|" + "---:|" * (len(options.settings) + 1),
        ]
        for metric in first["scores"]:
            cells = [
                _cell([pick(one[setting])["scores"][metric] for one in found]) for setting in options.settings
            ]
            chance = first["chance"][metric]
            lines.append(f"| {metric} | {' | '.join(cells)} | {'' if chance is None else f'{chance:.2f}'} |")
        facts = [pick(found[0][setting]) for setting in options.settings]
        lines.append(_line("numbers trained", [format(one["trained"], ",") for one in facts]))
        lines.append(_line("frozen, by hash", ["yes" if one["frozen"] else "no" for one in facts]))
        losses = [tuple(one["text_loss"].values()) for one in facts]
        lines.append(_line("loss on plain text", [f"{one:.3f} → {other:.3f}" for one, other in losses]))
        lines += ["", f"| truth | {' | '.join(options.settings)} |", "|---|" + "---|" * len(options.settings)]
        for at, (_, truth) in enumerate(facts[0]["samples"][:SHOWN]):
            lines.append(f"| {truth} | {' | '.join(one['samples'][at][0] for one in facts)} |")
        looking = facts[-1]["looking"]
        if "shown" in looking:
            lines.append(
                f"\n{looking['count']:,} pictures looked at in {looking['look_s']} s, shown {looking['shown']:,} times by"
                f" {options.settings[-1]!r}: {looking['saved_s']} s of looking saved."
            )
    seconds = [found[0][setting]["seconds"] for setting in options.settings]
    lines.append(
        f"\nSeconds of seed {options.seeds[0]}: {', '.join(f'{one:.0f}' for one in seconds)}. Seeds: {len(found)}."
    )
    return "\n".join(lines)


def _line(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} | |"


def _cell(scores: Sequence[Sequence[float]]) -> str:
    values = [one[0] for one in scores]
    if len(values) == 1:
        return f"{values[0]:.3f} [{scores[0][1]:.3f}, {scores[0][2]:.3f}] n={scores[0][3]}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f} ({' '.join(f'{one:.2f}' for one in values)})"


if __name__ == "__main__":
    main()
