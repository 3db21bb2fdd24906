"""Claims: what a verdict needs, that no row is missing, and that the page says what the result files hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stockpot.claims import CLAIMS, WITHOUT_EFFECT, Claim, Material, Result, run_claim
from stockpot.claims.claim import above, below, held
from stockpot.claims.material import check_cooks, contest_of, distinct_bases, trained
from stockpot.claims.page import page_of, read_results
from stockpot.cli.main import app
from stockpot.config import Settings
from stockpot.errors import ConfigError, DataError
from stockpot.run import Run
from stockpot.stages.diffusion import DrawConfig
from stockpot.stages.pretrain import PretrainConfig
from stockpot.stages.three_kinds import KINDS, ThreeKindsConfig
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "claims"


def claim(*findings) -> Claim:
    return Claim(1, "a-claim", "It holds", "Someone 1999", "small", lambda material: findings)


def nothing(tmp_path) -> Material:
    return Material((), tmp_path)


def test_an_effect_counts_only_if_its_whole_interval_passes():
    """Three values 1, 2, 3: mean 2, standard error 0.577, Student's 4.303 gives ± 2.484."""
    found = above("gain", [1.0, 2.0, 3.0], 0.0)
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (2.0, -0.484, 4.484)
    assert not found.passes
    many = above("gain", [float(i) for i in range(12)], 0.0)
    assert many.value - many.low == pytest.approx(2.201 * 13**0.5 / 12**0.5, rel=1e-3), (
        "eleven degrees of freedom"
    )
    assert above("gain", [2.0, 2.1, 2.2], 0.0).passes
    assert not above("gain", [5.0], 0.0).passes, "one seed says nothing about others"
    assert below("loss", [-2.0, -2.1, -2.2], 0.0).passes
    assert not below("loss", [-2.0, 2.1, -2.2], 0.0).passes
    assert held("equal", [1.0, 1.0]).passes and not held("equal", [1.0, 0.0]).passes


@pytest.mark.parametrize(
    ("passing", "verdict"), [((1, 1), "reproduced"), ((1, 0), "partly"), ((0, 0), "not reproduced")]
)
def test_the_verdict_follows_from_the_findings(passing, verdict, tmp_path):
    result = run_claim(claim(*(held("it holds", [float(one)]) for one in passing)), nothing(tmp_path))
    assert result.verdict == verdict
    assert Result.load(result.save(tmp_path)) == result
    for text in ("{}", "3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="is no result"):
            Result.load(tmp_path / "bad.json")


def test_one_seed_decides_nothing_but_what_is_exact(tmp_path):
    alone = run_claim(claim(above("gain", [5.0], 0.0), held("equal", [1.0])), nothing(tmp_path))
    assert alone.verdict == "undecided"
    assert "5.000 [one seed]" in page_of({CLAIMS[0].name: alone})
    assert Result.load(alone.save(tmp_path)) == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_kept_as_what_it_is(bad, tmp_path):
    """It passes no bar, and what was measured beside it is not lost."""
    findings = (above("gain", [0.1, bad], 0.0), below("loss", [bad], 0.0), held("equal", [1.0]))
    result = run_claim(claim(*findings), nothing(tmp_path))
    assert result.verdict == "not computed" and not any(one.passes for one in findings[:2])
    path = result.save(tmp_path)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    kept = Result.load(path)
    assert repr(kept.findings) == repr(result.findings), "NaN is equal to nothing, itself included"
    assert f"| gain | {bad:.1e} | 0.100 · {bad:.1e} | – | above 0 | no |" in page_of({CLAIMS[0].name: kept})


def test_no_row_is_missing():
    rows = [one.row for one in CLAIMS]
    assert sorted([*rows, *WITHOUT_EFFECT]) == list(range(1, 30))
    assert len({one.name for one in CLAIMS}) == len(CLAIMS)
    for _, tests in WITHOUT_EFFECT.values():
        assert (ROOT / tests).exists()


def test_the_page_is_written_from_the_committed_results():
    found = read_results(RESULTS)
    assert set(found) <= {one.name for one in CLAIMS}
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == page_of(found), "run: stockpot claims --page docs/claims.md"
    for name, result in found.items():
        assert not any(str(one).startswith("/") for one in result.facts.values()), f"{name} names a folder"


def test_a_claim_that_fails_stands_on_the_page_with_its_figures(tmp_path):
    name = CLAIMS[0].name
    findings = (above("gain", [0.1, -0.2, 0.0], 0.0, n=7), held("equal", [1.0]))
    page = page_of({name: run_claim(claim(*findings), nothing(tmp_path))})
    assert "| gain | -0.033 [-0.413, 0.346] | 0.100 · -0.200 · 0.000 | 7 | above 0 | no |" in page
    assert "**partly**" in page
    assert "not run yet" in page and "no effect is claimed" in page


def test_claims_are_listed_and_run(tmp_path):
    results = tmp_path / "results"
    words = [
        "claims",
        "run",
        "cross-entropy",
        "order",
        "--results",
        str(results),
        "--out",
        str(tmp_path / "out"),
    ]
    page = tmp_path / "claims.md"
    told = CliRunner().invoke(app, [*words, "--page", str(page), "--json"])
    assert told.exit_code == 0, told.stderr
    verdicts = {row[1]: row[2] for row in json.loads(told.stdout)}
    assert (verdicts["cross-entropy"], verdicts["order"]) == ("reproduced", "reproduced")
    assert verdicts["dpo"] == "not run yet"
    assert len(Result.load(results / "order.json").findings[0].by_seed) == 3
    assert page.read_text(encoding="utf-8") == page_of(read_results(results))
    told = CliRunner().invoke(app, ["claims", "run", "ordr"], env={"COLUMNS": "200"})
    assert told.exit_code == 1 and 'Did you mean "order"?' in told.stderr


def test_an_interval_over_copies_is_refused(tmp_path):
    one, copy = fake_cook(tmp_path / "a", base=0, tuned=0), fake_cook(tmp_path / "b", base=0, tuned=0)
    with pytest.raises(ConfigError, match="hold the same model"):
        check_cooks((one, copy))
    sister = fake_cook(tmp_path / "c", base=0, tuned=1)
    stranger = fake_cook(tmp_path / "d", base=1, tuned=2)
    check_cooks((one, sister, stranger))
    assert distinct_bases((one, sister, stranger)) == (one, stranger), (
        "claims about bases count a shared one once"
    )
    with pytest.raises(ConfigError, match="no finished cook"):
        check_cooks((tmp_path,))


def test_a_cook_that_was_cut_short_is_not_judged(tmp_path):
    """The run of its tuned model has a checkpoint, which is not the model that it was to become."""
    cook = fake_cook(tmp_path / "a", base=0, tuned=0)
    (cook / "cook.json").write_text(json.dumps({"sft": {"key": "k", "status": "started", "seconds": 3.0}}))
    with pytest.raises(ConfigError, match="no finished cook: sft is not done"):
        check_cooks((cook,))


def test_a_damaged_or_partial_cook_is_told(tmp_path):
    cook = fake_cook(tmp_path / "a", base=0, tuned=0)
    with pytest.raises(ConfigError, match="no contest"):
        contest_of(cook)
    (cook / "cook.json").write_text("[1")
    with pytest.raises(ConfigError, match="is damaged"):
        check_cooks((cook,))


def test_a_cook_without_minutes_has_no_budget_to_keep(tmp_path):
    cooks = [fake_cook(tmp_path / name, base=seed, tuned=seed) for seed, name in enumerate("ab")]
    for cook, command in zip(cooks, ("cook --minutes 0.1", "cook"), strict=True):
        (cook / "recipe.toml").write_text(f"# stockpot {command} --out runs\n")
    budget = next(one for one in CLAIMS if one.name == "budget")
    result = run_claim(budget, Material(tuple(cooks), tmp_path))
    assert result.verdict == "not computed" and "no minutes" in result.facts["told"][0]
    assert result.findings[0].by_seed[0] == pytest.approx(1.0)


def test_a_task_that_nothing_learns_is_no_jump_and_no_mirage(tmp_path):
    """Where exact match is noise about 0 its largest step is its whole range: that must not count as a jump of the metric."""
    learned = family_task("learned", "sharp", exact=[0.0, 0.0, 1.0, 1.0], smooth=[3.0, 2.0, 1.0, 0.0])
    flat = family_task("flat", "flat", exact=[0.0, 0.001, 0.0, 0.001], smooth=[3.0, 2.0, 1.0, 0.0])
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "emergence.json").write_text(json.dumps({"tasks": [learned, flat]}))
    settings = {"widths": [8, 16, 24, 32], "seeds": 3, "rows": 64}
    (folder / "family.json").write_text(json.dumps({"steps": 1500, "settings": settings}))
    known = {one.name: one for one in CLAIMS}
    jump = run_claim(known["emergence"], nothing(tmp_path))
    assert jump.findings[0].by_seed == (1.0, 0.001)
    assert "4 sizes was trained 3 times, 1,500 steps of 64" in jump.facts["told"][0]
    mirage = run_claim(known["mirage"], nothing(tmp_path))
    assert mirage.findings[1].by_seed == (pytest.approx(2 / 3), 0.0)
    assert mirage.facts["told"][1:] == ["learned.", "flat."]
    assert "interval over tasks] | task by task" in page_of({"mirage": mirage})


def test_three_kinds_that_are_there_already_must_be_of_the_same_text(tmp_path):
    metrics = ("gap", "retrieval", "continuation", "exact")
    values = {one: {kind: [0.1, 0.2, 0.3] for kind in KINDS} for one in metrics}
    kept = ThreeKindsConfig(minutes=12, seeds=3).model_dump(mode="json")
    file = tmp_path / "three-kinds" / "three-kinds.json"
    file.parent.mkdir()
    claim = next(one for one in CLAIMS if one.name == "three-kinds")

    def judged(**changed):
        facts = {"seconds": 9.0, "settings": kept | changed}
        file.write_text(json.dumps({"values": values, "facts": facts}))
        return run_claim(claim, nothing(tmp_path))

    assert len(judged(minutes=16.0).facts["told"]) == 1
    told = judged().facts["told"][1]
    assert told == "They were there already: 3 seeds and 12 minutes, where 3 and 16 were asked for."
    with pytest.raises(
        ConfigError, match=r"three-kinds was made with data = \['novels.txt'\], not \['village'\]"
    ):
        judged(data=["novels.txt"])


def family_task(name: str, form: str, *, exact: list[float], smooth: list[float]) -> dict[str, object]:
    points = [
        {"scores": {"exact": {"value": a}} | {one: {"value": b} for one in ("edit", "nats", "brier")}}
        for a, b in zip(exact, smooth, strict=True)
    ]
    curves = [{"metric": "exact", "shapes": {"form": form}}]
    return {"points": points, "curves": curves, "off": 0.01, "sentence": f"{name}."}


def test_a_training_that_was_cut_short_goes_on_before_it_is_judged(tmp_path):
    folder, calls = tmp_path / "run", []

    def stage(config, *, out, resume, progress):
        calls.append(resume)
        with Run.create(out, stage="test", recipe={}, resume=resume) as run:
            if len(calls) == 1:
                raise KeyboardInterrupt
        return run

    with pytest.raises(KeyboardInterrupt):
        trained(stage, Settings(), folder, nothing(tmp_path))
    with pytest.warns(RuntimeWarning, match="starts again"):
        assert trained(stage, Settings(), folder, nothing(tmp_path)).status == "done"
    assert trained(stage, Settings(), folder, nothing(tmp_path)).status == "done"
    assert calls == [False, True], "what is done is opened, not done again"


def test_a_run_on_another_cooks_model_is_not_taken_for_this_ones(tmp_path):
    one, other = (fake_cook(tmp_path / name, base=seed, tuned=seed) for seed, name in enumerate("ab"))

    class Tuning(Settings):
        model: str

    def stage(config, *, out, resume, progress):
        with Run.create(out, stage="test", recipe={}, parent=config.model, resume=resume) as run:
            return run

    config = Tuning(model=str(one / "sft"))
    trained(stage, config, tmp_path / "run", nothing(tmp_path))
    assert trained(stage, config, tmp_path / "run", nothing(tmp_path)).status == "done"
    with pytest.raises(ConfigError, match="on another model"):
        trained(stage, Tuning(model=str(other / "sft")), tmp_path / "run", nothing(tmp_path))


@pytest.mark.parametrize("found", [{"parent": None}, {"parent": {"path": "old", "fingerprint": "0"}}])
def test_a_drawing_steered_by_another_cooks_model_is_not_taken_for_this_ones(found, tmp_path):
    """One made before the parent was recorded may be anybody's."""
    cook = fake_cook(tmp_path / "a", base=0, tuned=0)
    config = DrawConfig(encoder=str(cook / "pretrain"))
    fake_run(tmp_path / "run", "train-draw", config, **found)
    with pytest.raises(ConfigError, match="on another model"):
        trained(unwanted, config, tmp_path / "run", nothing(tmp_path))
    words = config.model_copy(update={"encoder": "words"})
    assert trained(unwanted, words, tmp_path / "run", nothing(tmp_path)).status == "done"


def test_a_base_with_another_cooks_tokenizer_or_another_budget_is_not_taken_for_this_ones(tmp_path):
    """A larger model's depth and steps follow from the cook too, and two cooks may share a tokenizer."""
    for name, text in (("one", "a b a b"), ("same", "a b a b"), ("other", "c d c d")):
        Tokenizer.train([text], vocab_size=270).save(tmp_path / name)
    config = PretrainConfig(tokenizer=str(tmp_path / "one"), size=2, loop=LoopConfig(steps=5))
    folder = fake_run(tmp_path / "run", "pretrain", config)
    Tokenizer.load(tmp_path / "one").save(folder / "model")

    def open_as(**changes):
        return trained(unwanted, config.model_copy(update=changes), folder, nothing(tmp_path))

    assert open_as().status == open_as(tokenizer=str(tmp_path / "same")).status == "done"
    with pytest.raises(ConfigError, match=r"another tokenizer than .*other"):
        open_as(tokenizer=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"loop\.steps = 5, not 9"):
        open_as(loop=LoopConfig(steps=9))
    with pytest.raises(ConfigError, match="size = 2, not 3"):
        open_as(size=3)
    assert open_as(minutes=1.0).status == "done", "which became a size and steps"


def unwanted(config, **how):
    pytest.fail("what is done is opened, not done again")


def fake_run(folder: Path, stage: str, config: Settings, **manifest) -> Path:
    with Run.create(folder, stage=stage, recipe={stage: config}) as run:
        run.note(**manifest)
    return folder


def fake_cook(folder: Path, *, base: int, tuned: int) -> Path:
    for stage, seed in (("pretrain", base), ("sft", tuned)):
        model = folder / stage / "checkpoints" / "step-000001"
        model.mkdir(parents=True)
        (model / "weights").write_text(f"{stage} {seed}")
        (folder / stage / "model").symlink_to(model.relative_to(folder / stage))
        manifest = {"stage": stage, "status": "done", "seed": seed, "parameters": 1000}
        (folder / stage / "manifest.json").write_text(json.dumps(manifest))
    (folder / "cook.json").write_text(json.dumps({"pretrain": {"seconds": 6.0, "status": "done"}}))
    return folder


def test_a_folder_without_verdicts_says_how_to_get_them(tmp_path):
    told = CliRunner().invoke(app, ["claims", "--results", str(tmp_path)], env={"COLUMNS": "200"})
    assert told.exit_code == 0
    assert f"There are no verdicts in {tmp_path} yet" in told.stdout
