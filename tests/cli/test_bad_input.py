"""Whatever is wrong with what the user gives: one error of two lines, exit code 1, and nothing is lost."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.config import read_recipe
from stockpot.run import Run

TINY = "--size 1 --set context=32 --set loop.batch_tokens=64 --set val_tokens=64 --set loop.dtype=float32"
SENTENCES = [
    f"The {a} sleeps beside the {b}, and it is {n} o'clock." for a in "abcde" for b in "fghij" for n in (1, 2)
]


def ask(words: str):
    return CliRunner().invoke(app, shlex.split(words), env={"COLUMNS": "200"})


def refused(words: str, *said: str) -> str:
    """Run a verb that must fail as a known error does; return what it said."""
    found = ask(words)
    assert found.exit_code == 1, (found.exit_code, found.stdout, found.stderr)
    lines = [line for line in found.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines[0].startswith("error: "), found.stderr
    assert len(lines) == 2, found.stderr
    assert lines[1].startswith("       "), found.stderr
    assert len(lines[1]) > 12, "it says what to do"
    for part in said:
        assert part in found.stderr
    return found.stderr


@pytest.fixture(scope="module")
def pantry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pantry")
    lines = "\n".join(json.dumps({"text": text}) for text in SENTENCES)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    done = ask(f"train-tokenizer --data {folder}/corpus.jsonl --vocab-size 300 --out {folder}/tok --quiet")
    assert done.exit_code == 0, done.stderr
    done = ask(
        f"pretrain --data {folder}/corpus.jsonl --tokenizer {folder}/tok {TINY} --steps 4 --out {folder}/base --quiet "
        "--set loop.checkpoint_every=2"
    )
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def base(pantry, tmp_path):
    """Copy the finished run, for a test that spoils it."""
    shutil.copytree(pantry / "base", tmp_path / "base", symlinks=True)
    return tmp_path / "base"


VERBS = ("train-tokenizer --vocab-size 300", "pretrain --tokenizer {pantry}/tok " + TINY)


# --- the corpus ---


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_corpus(verb, pantry, tmp_path):
    refused(
        f"{verb.format(pantry=pantry)} --data {tmp_path}/nope.txt --out {tmp_path}/o -q",
        "nope.txt: there is no such",
    )
    refused(f"{verb.format(pantry=pantry)} --data '{tmp_path}/*.txt' --out {tmp_path}/o -q", "*.txt")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_an_empty_corpus(verb, content, pantry, tmp_path):
    (tmp_path / "empty.txt").write_bytes(content)
    refused(f"{verb.format(pantry=pantry)} --data {tmp_path}/empty.txt --out {tmp_path}/o -q", "empty")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_text_that_is_not_utf8_is_never_taken_silently(verb, pantry, tmp_path):
    good = "\n".join(SENTENCES).encode()
    (tmp_path / "odd.txt").write_bytes(good + b"\nna\xefve\n" + good)
    words = f"{verb.format(pantry=pantry)} --data {tmp_path}/odd.txt -q "
    said = refused(f"{words} --out {tmp_path}/o", "odd.txt", "UTF-8", str(len(good) + 3))
    assert "encoding_errors" in said, "the policy is a setting, and the error names it"
    steps = "" if "tokenizer" in verb.split()[0] else "--steps 1"
    done = ask(f"{words} --out {tmp_path}/o --set reading.encoding_errors=replace {steps}")
    assert done.exit_code == 0, done.stderr
    assert "warning: In 1 records invalid UTF-8 became" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_line_longer_than_allowed(verb, pantry, tmp_path):
    long = json.dumps({"text": "word " * 2000})
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "short"}) + "\n" + long, encoding="utf-8")
    words = f"{verb.format(pantry=pantry)} --data {tmp_path}/long.jsonl --out {tmp_path}/o -q"
    said = refused(f"{words} --set reading.max_line_bytes=4096", "long.jsonl:2: ", "4096")
    assert "max_line_bytes" in said


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_line_of_a_hundred_megabytes_takes_bounded_memory(ending, tmp_path):
    """A record that long is one error; a text is cut."""
    text = "a line that does not end " * (100 * 2**20 // 25)
    corpus = tmp_path / f"long.{ending}"
    corpus.write_text(json.dumps({"text": text}) if ending == "jsonl" else text, encoding="utf-8")
    words = f"train-tokenizer --vocab-size 300 --data {corpus} --out {tmp_path}/o -q"
    code = (
        f"import sys\nfrom stockpot.cli.main import main\nsys.argv = {['stockpot', *words.split()]!r}\nmain()"
    )
    watched = f"import resource, subprocess, sys\nran = subprocess.run([sys.executable, '-c', {code!r}])\n"
    watched += "print(ran.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    ran = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=True)
    returned, mebibytes = map(int, ran.stdout.split()[-2:])
    assert mebibytes < 1000
    if ending == "txt":
        assert returned == 0, ran.stderr
        return
    assert returned == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: ") and f"{corpus.name}:1: longer than 64 MiB" in line
    assert "max_line_bytes" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_the_lines_around_one_of_a_hundred_megabytes_are_read(ending, tmp_path):
    text = "a line that does not end " * (100 * 2**20 // 25)
    short = SENTENCES * 10
    lines = [*short[:100], text, *short[100:]]
    corpus = tmp_path / f"long.{ending}"
    kept = "\n".join(json.dumps({"text": line}) if ending == "jsonl" else line for line in lines)
    corpus.write_text(kept, encoding="utf-8")
    separator = """--set 'reading.separator="\\n"'""" if ending == "txt" else ""
    done = ask(f"train-tokenizer --vocab-size 300 --data {corpus} --out {tmp_path}/o -q {separator}")
    assert done.exit_code == 0, done.stderr
    assert "1 of 501 records are bad and left out: " in done.stderr
    assert f"{corpus.name}:101: " in done.stderr


def test_a_bad_record_is_told_with_file_and_line(pantry, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n', encoding="utf-8")
    refused(
        f"train-tokenizer --vocab-size 300 --data {tmp_path}/bad.jsonl --out {tmp_path}/o", "bad.jsonl:2: "
    )


# --- settings ---


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [("char", 13, "different characters"), ("byte-bpe", 100, "bytes"), ("bpe", 14, "different characters")],
)
def test_a_vocabulary_smaller_than_the_alphabet(kind, size, said, pantry, tmp_path):
    words = f"train-tokenizer --data {pantry}/corpus.jsonl --kind {kind} --vocab-size {size} --out {tmp_path}/o -q"
    refused(words, said, "vocab_size")
    assert not (tmp_path / "o").exists()


def test_an_unknown_key_of_a_recipe_names_file_line_and_neighbour(pantry, tmp_path):
    (tmp_path / "my.toml").write_text("[pretrain]\nsize = 1\n[pretrain.loop]\nstpes = 3\n", encoding="utf-8")
    words = f"pretrain --recipe {tmp_path}/my.toml --tokenizer {pantry}/tok --out {tmp_path}/o"
    refused(words, "my.toml:4: ", "loop.stpes", "Did you mean 'loop.steps'?")
    refused("pretrain --set loop.learning_rate=1", "--set loop.learning_rate=1")
    refused("sft x --recipe nothing-like-it", "no such recipe")


def test_other_settings_than_the_runs_own_are_refused_on_resume(pantry, base):
    kept = (base / "metrics.jsonl").read_bytes()
    refused(f"pretrain --out {base} --resume --set loop.lr=0.5", "loop.lr = 0.5", "recipe.toml")
    assert (base / "metrics.jsonl").read_bytes() == kept
    assert Run.open(base).status == "done"


def test_a_tokenizer_or_model_that_is_none(pantry, tmp_path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}", encoding="utf-8")
    refused(
        f"pretrain --tokenizer {tmp_path}/tok --data {pantry}/corpus.jsonl --out {tmp_path}/o",
        "tokenizer.json",
    )
    refused(f"sft {tmp_path}/nope --data {pantry}/corpus.jsonl --out {tmp_path}/o", "nope")
    refused(f"generate {pantry}/tok hello", "tok")


# --- the run's folder ---


def test_a_folder_that_holds_something_else(pantry, tmp_path):
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    words = f"--data {pantry}/corpus.jsonl -q --out {tmp_path}"
    refused(f"pretrain --tokenizer {pantry}/tok {TINY} {words}", "holds other files", "new folder")
    refused(f"train-tokenizer --vocab-size 300 {words}", "--out")
    refused(f"cook -q --out {tmp_path}", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_path_that_is_a_file(pantry, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    words = f"--data {pantry}/corpus.jsonl -q --out {tmp_path}/file"
    refused(f"pretrain --tokenizer {pantry}/tok {TINY} {words}", "file")
    refused(f"train-tokenizer --vocab-size 300 {words}", "file")
    refused(f"cook -q --out {tmp_path}/file", "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_second_run_in_the_same_folder_is_refused(pantry, base):
    with Run.create(base, stage="pretrain", recipe=read_recipe(base / "recipe.toml"), resume=True):
        refused(f"pretrain --out {base} --resume", "in use by process")


# --- checkpoints ---


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("damage", ["cut", "flip", "zero"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_the_run_ends_the_same(damage, base):
    whole = Run.open(base).series("train/loss")
    final = (base / "checkpoints/step-000004/model.safetensors").read_bytes()
    newest = base / "checkpoints/step-000004/state/training.pt"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 4
    newest.write_bytes({"cut": data[: len(data) // 2], "flip": data, "zero": bytes(len(data))}[damage])
    done = ask(f"pretrain --out {base} --resume -q")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("step-000004 is damaged") == 1
    assert Run.open(base).series("train/loss") == whole
    assert (base / "checkpoints/step-000004/model.safetensors").read_bytes() == final


def test_a_damaged_model_is_not_loaded(base):
    file = (base / "model").resolve() / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    refused(f"generate {base} hello --max-tokens 2", "model.safetensors", "has changed since it was written")


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_do(pantry, tmp_path):
    words = f"pretrain --data {pantry}/corpus.jsonl --tokenizer {pantry}/tok {TINY} --steps 30 --out {tmp_path}/r -q"
    said = refused(f"{words} --set loop.lr=1e30 --set loop.log_every=1 --set loop.schedule=constant", "Step ")
    assert "loop.lr" in said
    assert Run.open(tmp_path / "r").status == "failed"


# --- something else than what was meant ---


def test_a_folder_of_runs_that_is_taken_for_a_model_names_the_runs(base):
    refused(f"chat {base.parent}", "It holds runs", "such as base")


def test_a_tokenizer_or_a_text_that_is_taken_for_a_model_is_told_of_as_what_it_is(pantry):
    refused(f"chat {pantry}/tok", "It is a tokenizer")
    refused(f"chat {pantry}/corpus.jsonl", "corpus.jsonl is a file, and no model", "Give a run")


def test_a_tokenizer_is_not_written_over_a_file(pantry):
    refused(f"train-tokenizer --data {pantry}/corpus.jsonl --out {pantry}/corpus.jsonl -q", "is a file")


def test_a_model_is_not_written_into_a_run(base):
    before = sorted(base.iterdir())
    refused(f"convert {base} {base}", "holds a run", "new folder")
    assert sorted(base.iterdir()) == before


def test_a_misspelt_task_is_told_the_nearest(base):
    refused(f"eval {base} --task arc_esy -q", "arc_esy", "Did you mean arc_easy?", "eval --list")
    refused(f"eval {base} --task nowhere.jsonl -q", "nowhere.jsonl", "eval --list")


def test_kinds_of_tokenizer_are_checked_before_any_is_trained(pantry):
    said = refused(
        f"compare-tokenizers --data {pantry}/corpus.jsonl --kinds byte-bpe,chr", 'Did you mean "char"'
    )
    assert "train byte-bpe" not in said
    refused(f"compare-tokenizers --data {pantry}/corpus.jsonl --kinds ,", "--kinds")


def test_a_reward_in_a_file_needs_its_function(pantry, tmp_path):
    (tmp_path / "mine.py").write_text("def short(replies): return [0.0 for _ in replies]\n", encoding="utf-8")
    refused(
        f"contest {pantry}/base --judge {tmp_path}/mine.py --data {pantry}/corpus.jsonl", "mine.py:FUNCTION"
    )
