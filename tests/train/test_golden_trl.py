"""Losses and gradients equal TRL's on the same batch, model and reference."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest
import torch

from stockpot.data.batch import PreferenceBatch
from stockpot.data.branching import branched, tree_of
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.log_probs import label_log_probs
from stockpot.train.preference import PreferenceConfig, preference_loss, reward_loss
from stockpot.weights.store import load_model

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore")]

ROWS = [
    {"prompt": "Where does Mara live?", "chosen": " At the mill.", "rejected": " I do not know her at all."},
    {"prompt": "Three and four?", "chosen": " Seven.", "rejected": " Eight."},
    {"prompt": "A cat", "chosen": " sat on the old wall", "rejected": " is"},
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a policy and a reference of the Llama type, with one tokenizer."""
    home = tmp_path_factory.mktemp("trl")
    tokenizer = Tokenizer.train([" ".join(row.values()) for row in ROWS] * 20, vocab_size=300)
    for seed, name in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, **SIZES)
        transformers.LlamaForCausalLM(config).save_pretrained(home / name)
        tokenizer.save(home / name)
    return home


def trainer_of(folders, tmp_path, **choices):
    policy, reference = (
        transformers.LlamaForCausalLM.from_pretrained(folders / name) for name in ("policy", "reference")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "policy")
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        bf16=False,
        use_cpu=True,
        report_to=[],
        **choices,
    )
    return trl.DPOTrainer(
        policy,
        ref_model=reference,
        args=config,
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )


def ours_of(inputs):
    """Lay the trainer's rows (all chosen ones, then all rejected ones) out as our batch."""
    rows = []
    for ids, real, said in zip(
        *(inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")), strict=True
    ):
        ids, said = ids[real.bool()].numpy().astype(np.int32), said[real.bool()].bool().numpy()
        start = int(np.flatnonzero(said)[0])
        rows.append((ids[:start], ids[start:]))
    half = len(rows) // 2
    trees = [tree_of(rows[i][0], [rows[i][1], rows[i + half][1]]) for i in range(half)]
    texts, _ = branched(trees)
    return PreferenceBatch(texts, torch.ones(half))


def gradients(model):
    """Name the gradients that both sides spell alike."""
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_type": "sigmoid"}, {}),
        ({"loss_type": "sigmoid", "beta": 0.5}, {"beta": 0.5}),
        ({"loss_type": "ipo", "beta": 0.3}, {"objective": "ipo", "beta": 0.3}),
        ({"loss_type": "sigmoid_norm", "beta": 2.0}, {"per_token": True, "beta": 2.0}),
    ],
    ids=["dpo", "dpo-beta", "ipo", "per-token"],
)
def test_the_loss_and_its_gradients_equal_trls(folders, tmp_path, theirs, ours):
    trainer = trainer_of(folders, tmp_path, **theirs)
    inputs = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(trainer.model, inputs)
    wanted.backward()

    policy, reference = load_model(folders / "policy"), load_model(folders / "reference")
    batch = ours_of(inputs)
    with torch.no_grad():
        batch.reference = label_log_probs(reference, batch.texts).per_answer(batch.texts)[0]
    policy.train()
    loss = preference_loss(policy, batch, PreferenceConfig(**ours))
    (loss.total / loss.count).backward()

    assert (loss.total / loss.count).item() == pytest.approx(wanted.item(), abs=1e-5)
    found, known = gradients(policy), gradients(trainer.model)
    torch.testing.assert_close(
        found["embed.weight"], known["model.embed_tokens.weight"], atol=1e-5, rtol=1e-4
    )
    for layer in range(2):
        stem = f"model.layers.{layer}"
        qkv = torch.cat([known[f"{stem}.self_attn.{part}_proj.weight"] for part in "qkv"])
        torch.testing.assert_close(
            found[f"decoder.layers.{layer}.attention.qkv.weight"], qkv, atol=1e-5, rtol=1e-4
        )
        down = known[f"{stem}.mlp.down_proj.weight"]
        torch.testing.assert_close(
            found[f"decoder.layers.{layer}.ffn.down.weight"], down, atol=1e-5, rtol=1e-4
        )


def test_conservative_dpo_equals_trls_formula(folders, tmp_path):
    # DPOTrainer has no cDPO any more; the CPO trainer's smoothing of the same logistic loss has.
    from trl.experimental.cpo import CPOTrainer

    chosen, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -4.0])
    stand_in = types.SimpleNamespace(
        alpha=0.0,
        accelerator=types.SimpleNamespace(device="cpu"),
        loss_type="sigmoid",
        beta=0.4,
        label_smoothing=0.1,
    )
    wanted = CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    from stockpot.train.preference import dpo

    found = dpo(chosen - rejected, torch.ones(2), PreferenceConfig(beta=0.4, label_smoothing=0.1))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_simpo_equals_trls_formula():
    from trl.experimental.cpo import CPOTrainer

    from stockpot.train.preference import simpo

    chosen, rejected = torch.tensor([-0.3, -1.0]), torch.tensor([-0.7, -0.9])
    stand_in = types.SimpleNamespace(
        alpha=0.0,
        accelerator=types.SimpleNamespace(device="cpu"),
        loss_type="simpo",
        beta=2.0,
        label_smoothing=0.0,
        simpo_gamma=0.7,
    )
    wanted = CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    config = PreferenceConfig(objective="simpo", beta=2.0, gamma=0.7)
    torch.testing.assert_close(simpo(chosen - rejected, torch.ones(2), config), wanted, atol=1e-6, rtol=1e-6)


def test_the_reward_loss_equals_trls(folders, tmp_path):
    rows = [{**row, "margin": margin} for row, margin in zip(ROWS, (0.0, 1.0, 0.5), strict=True)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "policy")
    judge = transformers.LlamaForSequenceClassification.from_pretrained(folders / "policy", num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    config = trl.RewardConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        bf16=False,
        use_cpu=True,
        report_to=[],
        center_rewards_coefficient=0.05,
        disable_dropout=True,
    )
    trainer = trl.RewardTrainer(
        judge, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    margins = inputs["margin"].clone()
    wanted = trainer.compute_loss(trainer.model, inputs)
    wanted.backward()

    rows = [
        ids[real.bool()].numpy().astype(np.int32)
        for ids, real in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    half = len(rows) // 2
    trees = [tree_of(rows[i][:1], [rows[i][1:], rows[i + half][1:]]) for i in range(half)]
    batch = PreferenceBatch(branched(trees)[0], torch.ones(half), margin=margins.float())
    from stockpot.model.heads import ValueHead

    model = load_model(folders / "policy")
    model.value_head = ValueHead(32)
    with torch.no_grad():
        model.value_head.out.weight.copy_(judge.score.weight)
    loss = reward_loss(model, batch, margin_weight=1.0, centre_weight=0.05)
    (loss.total / loss.count).backward()
    assert (loss.total / loss.count).item() == pytest.approx(wanted.item(), abs=1e-5)
    torch.testing.assert_close(
        model.value_head.out.weight.grad, judge.score.weight.grad, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        model.embed.weight.grad, judge.model.embed_tokens.weight.grad, atol=1e-5, rtol=1e-4
    )
