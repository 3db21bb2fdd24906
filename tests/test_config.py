"""Settings merge in one order, and every mistake in them is told in one line that helps."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from stockpot.config import Settings, build, find_recipe, read_recipe, shipped_recipes, to_toml
from stockpot.errors import ConfigError


class Loop(Settings):
    steps: int = Field(100, ge=1, description="optimiser updates")
    clip_norm: float | None = Field(1.0, description="largest gradient norm; None = off")
    warmup_steps: int = 0


class Encoder(Settings):
    layers: int = 2


class Stage(Settings):
    data: str | tuple[str, ...] = "corpus.txt"
    out: Path | None = None
    position: Literal["none", "rope", "alibi"] | None = "rope"
    loop: Loop = Loop()
    encoder: Encoder | None = None
    loops: tuple[Loop, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if self.loop.warmup_steps > self.loop.steps:
            raise ValueError(f"warmup_steps {self.loop.warmup_steps} is more than steps {self.loop.steps}")
        return self


def recipe(folder: Path, text: str, name: str = "my.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def complaint(**arguments) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build(Stage, **arguments)
    return caught.value


# --- order ---


def test_flags_beat_sets_beat_later_recipes_beat_earlier_ones_beat_defaults(tmp_path):
    first = recipe(
        tmp_path, "[pretrain]\ndata='1'\n[pretrain.loop]\nsteps=1\nwarmup_steps=1\nclip_norm=0.1", "a.toml"
    )
    second = recipe(tmp_path, "[pretrain.loop]\nsteps=2\nwarmup_steps=2", "b.toml")
    made = build(
        Stage,
        table="pretrain",
        recipe_files=[first, second],
        sets=["loop.steps=3", "encoder.layers=7"],
        flags={"loop.steps": 4, "data": None},
    )
    assert made.loop.steps == 4
    assert made.loop.warmup_steps == 2
    assert made.loop.clip_norm == 0.1
    assert made.data == "1"
    assert made.position == "rope"
    assert made.encoder == Encoder(layers=7)


def test_a_recipe_builds_on_one_base_beside_it(tmp_path):
    recipe(tmp_path, "[pretrain]\ndata='base'\n[pretrain.loop]\nsteps=5", "base.toml")
    child = recipe(tmp_path, "base = 'base.toml'\n[pretrain.loop]\nwarmup_steps=3")
    made = build(Stage, table="pretrain", recipe_files=[child])
    assert (made.data, made.loop.steps, made.loop.warmup_steps) == ("base", 5, 3)
    assert read_recipe(child) == {"pretrain": {"data": "base", "loop": {"steps": 5, "warmup_steps": 3}}}


def test_a_base_of_a_base_is_refused(tmp_path):
    recipe(tmp_path, "base = 'c.toml'", "b.toml")
    with pytest.raises(ConfigError, match="only one level"):
        read_recipe(recipe(tmp_path, "base = 'b.toml'", "a.toml"))


def test_a_set_value_is_toml_and_otherwise_text(tmp_path):
    made = build(Stage, sets=["data=a/*.txt", "loop.clip_norm=0.5", 'data=["a", "b"]', "out=runs/x=y"])
    assert made.data == ("a", "b")
    assert made.loop.clip_norm == 0.5
    assert made.out == Path("runs/x=y")


def test_none_turns_off_what_can_be_off_and_stays_a_word_where_it_is_one():
    made = build(Stage, sets=["loop.clip_norm=none", "position=none"])
    assert made.loop.clip_norm is None
    assert made.position == "none"


# --- writing ---


def test_what_is_written_reads_back_as_the_same_settings():
    made = Stage(loop=Loop(clip_norm=None), position="none", encoder=Encoder(), loops=(Loop(steps=3), Loop()))
    text = to_toml({"pretrain": made}, comment="How to run it:\nstockpot pretrain")
    assert text.startswith("# How to run it:\n# stockpot pretrain\n")
    assert Stage.model_validate(tomllib.loads(text)["pretrain"]) == made


@given(
    steps=st.integers(1, 10**9),
    clip=st.none() | st.floats(0, 1e6),
    data=st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text != "none"),
    out=st.none() | st.just(Path("a b/ü")),
)
def test_any_settings_survive_toml(steps, clip, data, out):
    made = Stage(data=data, out=out, loop=Loop(steps=steps, clip_norm=clip))
    assert Stage.model_validate(tomllib.loads(to_toml(made))) == made


def test_explained_toml_has_every_setting_with_its_description_and_reads_back_the_same():
    made = Stage(data=("a", "b"), loop=Loop(clip_norm=None))
    text = to_toml({"pretrain": made}, explain=True)
    assert "steps = 100  # optimiser updates\n" in text
    assert 'clip_norm = "none"  # largest gradient norm; None = off\n' in text
    assert 'encoder = "none"\n' in text
    assert Stage.model_validate(tomllib.loads(text)["pretrain"]) == made


def test_explained_toml_keeps_a_text_with_a_line_end_of_unicode_in_one_line():
    made = Stage(data="a\u2028b\x85c")
    assert Stage.model_validate(tomllib.loads(to_toml(made, explain=True))) == made


def test_a_name_that_is_not_utf8_is_told_where_settings_are_written():
    with pytest.raises(ConfigError, match=r"data = .*\\udce9.* is not UTF-8"):
        to_toml(Stage(data="caf\udce9.txt"))


# --- mistakes ---


def test_an_unknown_key_names_file_line_key_value_and_the_nearest_key(tmp_path):
    path = recipe(tmp_path, "[tokenizer]\nkind='byte'\n\n[pretrain]\ndata='x'\n[pretrain.loop]\nstpes = 3\n")
    error = complaint(table="pretrain", recipe_files=[path])
    assert error.what == "my.toml:7: there is no setting 'loop.stpes' (value 3)."
    assert error.todo == "Did you mean 'loop.steps'?"


def test_a_mistake_in_a_dotted_key_is_told_at_its_line(tmp_path):
    path = recipe(tmp_path, "[pretrain]\ndata='x'\nlopo.steps = 3\n")
    assert complaint(table="pretrain", recipe_files=[path]).what.startswith(
        "my.toml:3: there is no setting 'lopo'"
    )


def test_a_key_of_the_wrong_table_is_found_where_it_lives():
    error = complaint(sets=["steps=3"])
    assert "--set steps=3" in error.what
    assert error.todo == "Did you mean 'loop.steps'?"


def test_a_hopeless_key_lists_the_valid_ones():
    assert complaint(sets=["encoder.xyzzy=1"]).todo == "Valid keys in encoder: layers."


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ("loop.steps=x", "--set loop.steps=x: loop.steps is 'x'; expected a valid integer."),
        ("loop.steps=0", "--set loop.steps=0: loop.steps is 0; expected greater than or equal to 1."),
        ("loop.clip_norm=inf", "--set loop.clip_norm=inf: loop.clip_norm is inf; expected a finite number."),
        ("loop.clip_norm=nan", "--set loop.clip_norm=nan: loop.clip_norm is nan; expected a finite number."),
        ("position=rpoe", "--set position=rpoe: position is 'rpoe'; expected 'none', 'rope' or 'alibi'."),
        ("encoder=3", "--set encoder=3: encoder is 3; expected a valid dictionary or instance of Encoder."),
    ],
)
def test_a_wrong_value_says_where_what_and_what_was_expected(item, what):
    assert complaint(sets=[item]).what == what


def test_a_flag_is_named_as_it_is_typed():
    error = complaint(flags={"loop.warmup_steps": "soon"})
    assert error.what == "--warmup-steps: loop.warmup_steps is 'soon'; expected a valid integer."


def test_an_impossible_combination_is_told_in_the_settings_own_words():
    assert "warmup_steps 200 is more than steps 100" in complaint(sets=["loop.warmup_steps=200"]).what


def test_several_mistakes_are_counted():
    assert "(1 more wrong.)" in complaint(sets=["loop.steps=x", "loop.warmup_steps=y"]).what


def test_settings_made_in_python_explain_themselves_too():
    with pytest.raises(ConfigError, match=r"Loop: there is no setting 'stpes'.*Did you mean 'steps'"):
        Loop(stpes=3)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Loop().steps = 3


@pytest.mark.parametrize("item", ["steps", "=3", "a..b=3"])
def test_a_set_without_key_and_value_is_refused(item):
    assert "expected KEY=VALUE" in complaint(sets=[item]).what


def test_a_set_that_reaches_into_a_value_is_refused():
    assert "'data' is a value" in complaint(sets=["data=x", "data.y=1"]).what


def test_a_missing_table_names_the_one_that_was_meant(tmp_path):
    path = recipe(tmp_path, "[pretran]\ndata='x'")
    error = complaint(table="pretrain", recipe_files=[path])
    assert error.what == "my.toml: there is no [pretrain] table."
    assert error.todo == "Did you mean [pretrain] where [pretran] stands?"


def test_broken_toml_names_the_file_and_line(tmp_path):
    path = recipe(tmp_path, "[pretrain]\ndata = corpus.txt")
    assert "not valid TOML" in complaint(recipe_files=[path]).what
    assert "line 2" in complaint(recipe_files=[path]).what


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"a = '\xff'")
    assert "not UTF-8" in complaint(recipe_files=[path]).what


def test_a_set_value_beyond_what_toml_reads_is_text():
    assert build(Stage, sets=["data=" + "9" * 5_000]).data == "9" * 5_000
    assert build(Stage, sets=["data=" + "[" * 100_000]).data == "[" * 100_000


def test_a_deeply_nested_recipe_is_an_error_and_no_crash(tmp_path):
    for value in ("[" * 100_000, "9" * 5_000):
        path = recipe(tmp_path, f"a = {value}")
        assert "not valid TOML" in complaint(recipe_files=[path]).what


def test_an_unknown_recipe_names_what_there_is():
    with pytest.raises(ConfigError, match="no such recipe"):
        find_recipe("no-such-recipe")


def test_every_shipped_recipe_starts_with_its_command_and_is_found_by_name():
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# stockpot "), f"{name}: the first line should be the command that runs it"
        assert find_recipe(name) == path


def test_none_inside_a_list_survives_a_recipe(tmp_path):
    from stockpot.model.config import StackConfig

    config = StackConfig(window=(None, 128))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml({"stack": config}), encoding="utf-8")
    assert build(StackConfig, table="stack", recipe_files=[recipe]).window == (None, 128)


def test_too_few_values_are_counted_in_our_words():
    class Lengths(Settings):
        lengths: tuple[int, ...] = Field((1, 2, 3), min_length=3)

    with pytest.raises(ConfigError, match="expected at least 3 items") as caught:
        build(Lengths, sets=["lengths=[1, 2]"])
    assert "Tuple" not in str(caught.value)
