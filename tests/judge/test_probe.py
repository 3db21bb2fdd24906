"""Probing from files to figures, on models of every shape; the lens and the heads against the model itself."""

from __future__ import annotations

import json

import pytest
import torch

import stockpot
from stockpot.errors import ConfigError, DataError
from stockpot.judge.probe import ProbeConfig, probe
from stockpot.judge.probe_data import read_passages
from stockpot.judge.probe_lens import attention_statistics, logit_lens
from stockpot.judge.probe_states import Reader, compute_states

QUICK = ProbeConfig(width=8, epochs=1, seeds=2)
TEXTS = ["yes no maybe", "What is it? blue", "1 2 3 red green yes"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sentences of coloured words whose tag is their kind, in twelve documents."""
    path = tmp_path_factory.mktemp("probing") / "words.jsonl"
    kinds = {"blue": "ADJ", "red": "ADJ", "yes": "INTJ", "no": "INTJ", "1": "NUM", "2": "NUM"}
    rows = []
    for number in range(48):
        tokens = [list(kinds)[(number * 7 + k * (k + number)) % 6] for k in range(6)]
        heads = [0, *range(1, 6)]
        rows.append(
            {
                "id": f"d{number // 4}-{number}",
                "tokens": tokens,
                "upos": [kinds[token] for token in tokens],
                "head": heads,
                "deprel": ["left" if kinds[token] == "ADJ" else "right" for token in tokens],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", ["encoder", "decoder", "encoder_decoder"])
def test_every_shape_of_model_is_probed(make_bundle, data, shape, tmp_path):
    report = stockpot.probe(make_bundle(shape), data, config=QUICK)
    assert report.layers == (0, 1, 2) and [one.task for one in report.tasks] == ["pos", "dependencies"]
    for task in report.tasks:
        assert len(task.scores) == len(task.control) == 3
        assert all(one.low <= one.value <= one.high for one in task.scores)
        assert sum(task.mix) == pytest.approx(1, abs=1e-5)
    assert (report.lens is None) == (shape == "encoder_decoder")  # its encoder predicts no tokens
    folder = report.save(tmp_path / "out")
    saved = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    assert saved["sentence"] == report.sentence and len(saved["tasks"]) == 2
    assert all((folder / f"{name}.svg").read_text("utf-8").startswith("<svg") for name in report.charts())


def test_the_decoder_of_an_encoder_decoder_can_be_probed(make_bundle, data):
    report = probe(
        make_bundle("encoder_decoder"), data, stack="decoder", config=QUICK, control=False, mdl=True
    )
    assert report.stack == "decoder" and report.lens is not None
    for task in report.tasks:
        assert task.control == () and task.bits > 0 and task.compression > 0
    with pytest.raises(ConfigError, match="has no encoder"):
        probe(make_bundle("decoder"), data, stack="encoder", config=QUICK)


@pytest.mark.parametrize("layers", ["0", "2,1", "0,9", "first", [1, 1]])
def test_layers_that_do_not_exist_are_refused(make_bundle, data, layers):
    with pytest.raises(ConfigError, match="at least two layers from 0 to 2"):
        probe(make_bundle(), data, layers=layers, config=QUICK)


def test_tasks_are_chosen_by_name(make_bundle, data):
    report = probe(make_bundle(), data, layers="0,2", tasks=["pos"], config=QUICK)
    assert [one.task for one in report.tasks] == ["pos"] and report.layers == (0, 2)
    assert "Fewer than two tasks" in report.sentence
    with pytest.raises(ConfigError, match="The data has no roles"):
        probe(make_bundle(), data, tasks=["roles"], config=QUICK)


def test_too_little_data_is_refused(make_bundle, data):
    with pytest.raises(DataError, match="to learn from"):
        probe(make_bundle(), data, limit=4, config=QUICK)


@pytest.mark.parametrize("shape", ["encoder", "decoder"])
def test_states_are_the_models_own_whatever_stands_beside_a_text(make_bundle, data, shape, tmp_path):
    bundle = make_bundle(shape)
    passages = read_passages([data], limit=20)
    (tmp_path / "many").mkdir()
    states = compute_states(bundle, passages, tmp_path / "many", layers=(0, 1, 2))
    values = torch.from_numpy(states.values.astype("float32"))
    assert values.mean(0).abs().max() < 1e-2 and (values.std(0) - 1).abs().max() < 2e-2
    reader = Reader(bundle)
    before, after = reader.frame()
    number = 7
    ids, offsets = bundle.tokenizer.encode_with_offsets(passages[number].text)
    alone = torch.stack(reader.read([[*before, *ids, *after]])[0], 2)[0, len(before) : len(before) + len(ids)]
    alone = torch.nn.functional.layer_norm(alone, alone.shape[-1:])
    own = values[states.starts[number] : states.starts[number + 1]]
    scale, shift = _line(own.flatten(1), alone.flatten(1), values)
    assert torch.allclose(own.flatten(1) * scale + shift, alone.flatten(1), atol=2e-2)  # float16
    for (start, end), tokens in zip(passages[number].words, states.words[number], strict=True):
        spelled = "".join(passages[number].text[a:b] for a, b in offsets[tokens[0] : tokens[1]])
        assert passages[number].text[start:end] in spelled


def _line(own, alone, values):
    """Undo the standardising: fit each unit's spread and mean from the rows at hand."""
    scale = ((own - own.mean(0)) * (alone - alone.mean(0))).sum(0) / (own - own.mean(0)).square().sum(0)
    return scale, alone.mean(0) - scale * own.mean(0)


def test_a_passage_longer_than_the_context_is_counted_not_cut(make_bundle, tmp_path):
    rows = [{"id": f"a{i}-1", "tokens": ["yes"] * n, "upos": ["INTJ"] * n} for i, n in enumerate((3, 200))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    states = compute_states(make_bundle(), read_passages([path], limit=9), tmp_path, layers=(0, 1))
    assert states.left_out == 1 and states.words[0] is not None and states.words[1] is None


@pytest.mark.parametrize("shape", ["encoder", "decoder"])
def test_the_lens_ends_with_what_the_model_says(make_bundle, shape):
    bundle = make_bundle(shape)
    lens = logit_lens(bundle, TEXTS)
    assert [one.layer for one in lens] == [0, 1, 2]
    assert logit_lens(bundle, TEXTS, layers=[0]) == [lens[0], lens[2]]
    assert lens[-1].agrees.value == 1.0 and lens[0].agrees.value < 1.0
    nats = []
    for text in TEXTS:
        ids = torch.tensor([bundle.encode(text)])
        with torch.inference_mode():
            log_probs = bundle.model(ids).logits[0].log_softmax(-1)
        shift = int(shape == "decoder")
        rows = log_probs[: len(log_probs) - shift].gather(1, ids[0, shift:, None])
        nats.append(-float(rows.mean()))
    assert lens[-1].nats.value == pytest.approx(sum(nats) / 3, abs=1e-4)


def test_heads_are_described_as_their_weights_say(make_bundle):
    bundle = make_bundle()
    looks = attention_statistics(bundle, TEXTS)
    assert [(one.layer, one.head) for one in looks] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    wanted, tokens = torch.zeros(6), 0
    for text in TEXTS:
        ids = torch.tensor([bundle.encode(text)])
        with torch.inference_mode(), bundle.model.watch() as seen:
            bundle.model(ids)
        weights = seen.attention[1][0, 0]
        for q, row in enumerate(weights):
            far = sum(float(w) * abs(q - k) for k, w in enumerate(row))
            entropy = -sum(float(w) * float(w.log()) for w in row if w > 0)
            before = float(row[q - 1]) if q else 0.0
            wanted += torch.tensor([entropy, far, before, 0.0, float(row[q]), float(row[0])])
            tokens += 1
    look = looks[2]
    found = [look.entropy, look.distance, look.previous, look.following, look.itself, look.first]
    assert found == pytest.approx((wanted / tokens).tolist(), abs=1e-4)
