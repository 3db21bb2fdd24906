"""Learning from rewards: rewards rise under a bound on the distance, and a run resumes in the midst of a phase."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.model.adapters import LoRA
from stockpot.stages.ppo import GRPOConfig, PPOConfig, RewardLoop, grpo, ppo
from stockpot.stages.rewards import reward_from
from stockpot.text.chat import Message
from stockpot.train.rollouts import Reply, rated

LOOP = RewardLoop(steps=24, lr=1e-2, dtype="float32", checkpoint_every=100)


def shorter(replies):
    """Like answers of few letters."""
    return [-len(one.text) / 10 for one in replies]


@pytest.fixture
def config(tiny_base):
    return PPOConfig(
        model=str(tiny_base),
        data="village:prompts:0:40",
        prompts=16,
        max_tokens=8,
        kl_coef=0.02,
        stop_kl=None,
        loop=LOOP,
    )


def last(run, name, count=4):
    values = [value for _, value in run.series(name)]
    return sum(values[-count:]) / count


def first(run, name, count=2):
    return sum(value for _, value in run.series(name)[:count]) / count


def test_ppo_raises_a_length_reward_under_a_bound_on_the_distance(config, tmp_path):
    loop = LOOP.model_copy(update={"steps": 40, "lr": 3e-2})
    config = config.model_copy(update={"prompts": 64, "max_tokens": 6, "kl_coef": 0.002, "loop": loop})
    run = ppo(config, out=tmp_path / "run", reward=shorter)
    # when this was written: -0.87 at first, -0.43 at the end, at 4.5 nats an answer
    assert last(run, "train/reward", 2) > first(run, "train/reward") + 0.3
    assert 1 < last(run, "train/kl", 2) < 10
    near = ppo(config.model_copy(update={"kl_coef": 0.2}), out=tmp_path / "near", reward=shorter)
    assert last(near, "train/kl", 2) < last(run, "train/kl", 2) / 2  # nearness has its price
    for name in ("kl_step", "clipped", "entropy", "value_loss", "kl_coef", "finished"):
        assert run.series(f"train/{name}"), name
    samples = sorted((run.path / "samples").iterdir())
    assert len(samples) == 10  # 40 steps, 4 a phase
    rows = [json.loads(line) for line in samples[0].read_text().splitlines()]
    assert len(rows) == 64 and rows[0]["reward"] == -len(rows[0]["reply"]) / 10


@pytest.mark.parametrize("baseline", ["group", "leave-one-out"])
def test_answers_to_one_prompt_are_compared(tiny_base, tmp_path, baseline):
    config = GRPOConfig(
        model=str(tiny_base),
        data="village:prompts:0:40",
        baseline=baseline,
        prompts=16,
        max_tokens=6,
        kl_coef=0.002,
        stop_kl=None,
        loop=LOOP.model_copy(update={"steps": 16, "lr": 3e-2}),
    )
    run = grpo(config, out=tmp_path / "run", reward=shorter)
    # when this was written, group: -0.87 at first, -0.54 at the end
    assert last(run, "train/reward") > first(run, "train/reward") + 0.15
    assert run.series("train/kl_reference")
    assert not run.series("train/value_loss")


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "adapter"])
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_resumes_exactly_in_the_midst_of_a_phase(config, tmp_path, interrupted_at, adapter, stop):
    config = config.model_copy(
        update={
            "loop": LOOP.model_copy(update={"steps": 7}),
            "adapter": adapter,
            "target_kl": 1.0,
            "prompts": 8,
        }
    )
    whole = ppo(config, out=tmp_path / "whole", reward=shorter)
    interrupted_at(stop, lambda press: ppo(config, out=tmp_path / "torn", reward=shorter, progress=press))
    torn = ppo(config, out=tmp_path / "torn", reward=shorter, resume=True)
    for name in ("train/loss", "train/reward", "train/kl", "train/kl_coef"):
        assert torn.series(name) == whole.series(name), name
    weights = "model.safetensors" if adapter is None else "adapter_model.safetensors"
    assert (torn.model_path / weights).read_bytes() == (whole.model_path / weights).read_bytes()


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "adapter"])
def test_answers_are_written_in_the_number_type_of_training(config, tmp_path, adapter):
    loop = LOOP.model_copy(update={"steps": 4, "dtype": "bfloat16"})
    run = ppo(
        config.model_copy(update={"loop": loop, "adapter": adapter}), out=tmp_path / "run", reward=shorter
    )
    # the tokens of the rounded copy are about as probable under the policy itself: hardly any is clipped at once
    assert run.series("train/clipped")[0][1] < 0.05
    assert abs(run.series("train/kl")[0][1]) < 0.1


@pytest.mark.parametrize(
    ("rate", "is_alike"), [(lambda replies: [0.0] * len(replies), True), (shorter, False)]
)
def test_ratings_that_tell_no_answer_from_another_are_told(tiny_base, tmp_path, rate, is_alike):
    """A reward that gives 0 to everything went through a whole run without a word."""
    config = GRPOConfig(
        model=str(tiny_base), data="village:prompts:0:40", prompts=4, samples=4, max_tokens=8,
        loop=LOOP.model_copy(update={"steps": 1}),
    )  # fmt: skip
    said = []
    run = grpo(config, out=tmp_path / "run", reward=rate, progress=said.append)
    told = [one["text"] for one in said if one["kind"] == "note" and "rated differently" in one["text"]]
    assert bool(told) == is_alike
    assert (run.last("train/alike") == 1.0) == is_alike


def test_prompts_need_no_answers_where_the_reward_needs_none(config, tmp_path, write_lines):
    prompts = write_lines("prompts.jsonl", [{"prompt": f"Who lives in house {n}?"} for n in range(20)])
    loop = LOOP.model_copy(update={"steps": 4})
    run = ppo(
        config.model_copy(update={"data": (prompts,), "loop": loop}), out=tmp_path / "run", reward=shorter
    )
    assert run.manifest["prompts"] == 20
    with pytest.raises(TrainError, match="known answer"):
        ppo(config.model_copy(update={"data": (prompts,), "reward": ("exact",)}), out=tmp_path / "exact")


def test_the_price_of_distance_adapts(config, tmp_path):
    config = config.model_copy(update={"target_kl": 1e-6, "loop": LOOP.model_copy(update={"steps": 12})})
    run = ppo(config, out=tmp_path / "run", reward=shorter)
    prices = [value for _, value in run.series("train/kl_coef")]
    assert prices[1] < prices[0]  # in the first phase there is no distance at all
    assert prices[2] > prices[1]


def test_a_phase_ends_early_when_the_policy_has_moved(config, tmp_path):
    hasty = config.model_copy(update={"stop_kl": 1e-9, "loop": LOOP.model_copy(update={"steps": 6})})
    run = ppo(hasty, out=tmp_path / "run", reward=shorter)
    assert len(list((run.path / "samples").iterdir())) > 2  # more phases than 6 steps / 4 would have


def test_the_true_worth_stands_beside_the_reward(config, tmp_path):
    config = config.model_copy(update={"gold": "village:0:40", "loop": LOOP.model_copy(update={"steps": 2})})
    run = ppo(config, out=tmp_path / "run", reward=shorter)
    assert 0 <= run.last("train/gold") <= 3


def test_validation_answers_prompts_that_are_not_trained_on(config, tmp_path):
    watched = {
        "gold": "village:0:40",
        "drift_data": ("village:prompts/val:0:40",),
        "drift_prompts": 4,
        "loop": LOOP.model_copy(update={"steps": 4, "validate_every": 2}),
    }
    run = ppo(config.model_copy(update=watched), out=tmp_path / "run", reward=shorter)
    for name in ("kl", "length", "reward", "gold"):
        assert [step for step, _ in run.series(f"val/{name}")] == [2, 4], name
    assert len(list((run.path / "samples" / "validation").iterdir())) == 2


# --- bad rewards, bad input ---


def test_a_reward_that_is_no_number_is_shown_with_its_reply(config, tmp_path):
    with pytest.raises(TrainError, match="gave nan for the reply"):
        ppo(config, out=tmp_path / "nan", reward=lambda replies: [math.nan] * len(replies))
    with pytest.raises(TrainError, match="gave 1 rewards for 16 replies"):
        ppo(config, out=tmp_path / "few", reward=lambda replies: [1.0])


def test_a_reward_that_raises_is_shown_with_its_reply():
    replies = [Reply("P", text, None, 1, True) for text in ("good", "bad")]
    with pytest.raises(TrainError, match=r"ZeroDivisionError.*'bad' to 'P'"):
        rated(lambda some: [1 / (one.text != "bad") for one in some], replies)


def test_a_collapsed_policy_is_stopped(config, tmp_path):
    with pytest.raises(TrainError, match=r"collapsed: \d+ nats"):
        wild = config.model_copy(update={"max_kl": 1e-4})
        ppo(wild, out=tmp_path / "run", reward=shorter)


def test_what_does_not_fit_is_refused_before_any_work(config, tmp_path, tiny_base):
    with pytest.raises(ConfigError, match="There is no reward"):
        ppo(config, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="1 rewards and 2 reward_weights"):
        ppo(
            config.model_copy(update={"reward": ("exact",), "reward_weights": (1.0, 2.0)}),
            out=tmp_path / "run",
        )
    with pytest.raises(ConfigError, match="samples must be at least 2"):
        GRPOConfig(samples=1)
    with pytest.raises(ConfigError, match="no value head"):
        ppo(config.model_copy(update={"reward": (str(tiny_base),)}), out=tmp_path / "run")
    with pytest.raises(DataError, match="No prompt leaves room"):
        ppo(config.model_copy(update={"max_tokens": 127}), out=tmp_path / "run", reward=shorter)
    assert not (tmp_path / "run").exists()


# --- where rewards come from ---


def test_rewards_by_name_and_from_a_file(tmp_path):
    replies = [Reply("P", "Nine", "nine", 1, True), Reply("P", "ten", "nine", 1, True)]
    assert reward_from("exact", device="cpu")(replies) == [1.0, 0.0]
    file = tmp_path / "mine.py"
    file.write_text("def length(replies):\n    return [len(one.text) for one in replies]\n")
    assert reward_from(f"{file}:length", device="cpu")(replies) == [4, 3]
    with pytest.raises(ConfigError, match="no function 'width'"):
        reward_from(f"{file}:width", device="cpu")
    with pytest.raises(ConfigError, match="no such file"):
        reward_from(f"{tmp_path}/none.py:f", device="cpu")


def test_a_function_that_hangs_or_ends_its_process_ends_nothing_else(tmp_path):
    from stockpot.stages.reward_child import RewardChild

    file = tmp_path / "mine.py"
    file.write_text(
        "import os, time\n"
        "def rate(replies):\n"
        "    print('heard', len(replies))\n"
        "    if replies[0].text == 'hang': time.sleep(60)\n"
        "    if replies[0].text == 'die': os._exit(3)\n"
        "    return [one.tokens for one in replies]\n"
    )
    child = RewardChild(file, "rate", timeout_s=0.5)
    assert child([{"text": "fine", "tokens": 2}]) == [2.0]  # what it prints stands in nobody's way
    with pytest.raises(TimeoutError, match=r"longer than 0\.5 s"):
        child([{"text": "hang", "tokens": 1}])
    with pytest.raises(RuntimeError, match="its process ended with 3"):
        child([{"text": "die", "tokens": 1}])
    assert child([{"text": "fine", "tokens": 4}]) == [4.0]
    child.close()
    file.write_text("raise OSError('no licence')\n")
    with pytest.raises(ConfigError, match="cannot be used: OSError: no licence"):
        reward_from(f"{file}:rate", device="cpu")


def test_a_reward_model_rates_replies(tiny_base, tmp_path):
    from stockpot.stages.assemble import GentleLoop
    from stockpot.stages.reward import RewardConfig, reward

    loop = GentleLoop(steps=2, batch_tokens=256, lr=5e-3, dtype="float32")
    run = reward(
        RewardConfig(model=str(tiny_base), data="village:preferences:0:40", loop=loop),
        out=tmp_path / "reward",
    )
    rate = reward_from(str(run.path), device="cpu")
    replies = [Reply("Who is it?", text, None, 3, True) for text in ("Mara.", "I do not know.", "Mara.")]
    found = rate(replies)
    assert found[0] == pytest.approx(found[2], abs=1e-6) and found[0] != found[1]
    said = (Message("system", "Be brief."), Message("user", "Who is it?"))
    assert rate([replace(replies[0], messages=said)])[0] != found[0]  # it reads the conversation, not its end
