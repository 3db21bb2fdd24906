"""Tokenizers in the style of each family: the ids that transformers gives, special tokens included.

The vocabularies are made here, with the rules that the released tokenizers have.
"""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from stockpot.bundle import Bundle
from stockpot.generate.scoring import _gapped_ids
from stockpot.model import config as shapes
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, save

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Dr. Müller paid 1,234.50 € for three naïve façades in São Paulo!",
    "def add(a, b):\n    return a + b  # it's easy, isn't it?",
    "Ünïcödé — “quotes”, ellipses… and emoji 😀🎉 too. 東京 и Москва.",
] * 12
TEXTS = [
    "The lazy fox.",
    " The  lazy   fox ",
    "it's 12345 naïve\n\n\tfaçades—don't!",
    "😀 東京 unseen ŵörds ñ",
    "",
    "a",
    "end with space ",
    "line one\nline two\r\n",
]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


MASK = AddedToken("<mask>", lstrip=True, special=True, normalized=False)


def special(*tokens):
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def single(first, last, ids):
    """Make the post-processor that puts special tokens around a text."""
    return processors.TemplateProcessing(
        single=" ".join([*first, "$A", *last]),
        pair=" ".join([*first, "$A", *last, "$B", *last]),
        special_tokens=[(token, ids[token]) for token in {*first, *last}],
    )


def trained(engine, trainer, names):
    engine.train_from_iterator(CORPUS, trainer)
    engine.add_special_tokens(special(*names))
    return {token: engine.token_to_id(token) for token in names}


def bert():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    engine = Engine(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    ids = trained(engine, trainers.WordPieceTrainer(vocab_size=220, special_tokens=names), names)
    engine.post_processor = single(["[CLS]"], ["[SEP]"], ids)
    engine.enable_truncation(128)  # as files of sentence encoders have it
    engine.enable_padding(length=128)
    return engine, {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}


def byte_level(engine, *, prefix=False):
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    engine.decoder = decoders.ByteLevel()
    return trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def gpt2():
    engine = Engine(models.BPE())
    trained(engine, byte_level(engine), ["<|endoftext|>"])
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    return engine, dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")


def neox():
    engine, _ = gpt2()
    engine.normalizer = normalizers.NFC()
    engine.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])]
    )
    return engine, dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")


def roberta():
    engine = Engine(models.BPE())
    trainer = byte_level(engine)
    ids = trained(engine, trainer, ["<s>", "<pad>", "</s>", "<unk>"])
    engine.add_special_tokens([MASK])
    engine.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    return engine, {}


def qwen():
    engine = Engine(models.BPE())
    trainer = byte_level(engine)
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained(engine, trainer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    engine.post_processor = processors.ByteLevel(trim_offsets=False, add_prefix_space=False)
    return engine, {"eos": "<|im_end|>", "pad": "<|endoftext|>", "bos": None}


def smollm():
    engine = Engine(models.BPE())
    trainer = byte_level(engine)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained(engine, trainer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return engine, {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"}


def llama3():
    engine = Engine(models.BPE(ignore_merges=True))
    trainer = byte_level(engine)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ids = trained(engine, trainer, ["<|begin_of_text|>", "<|eot_id|>"])
    engine.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), single(["<|begin_of_text|>"], [], ids)]
    )
    return engine, {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}


def byte_fallback(names):
    """Make a BPE over characters with ``▁`` for spaces, which spells what it does not know in bytes."""
    engine = Engine(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*names, *bytes_], show_progress=False)
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.train_from_iterator(CORPUS[:2], trainer)
    spec = json.loads(engine.to_str())
    spec["added_tokens"] = [one for one in spec["added_tokens"] if not one["content"].startswith("<0x")]
    return Engine.from_str(json.dumps(spec))


def llama2():
    engine = byte_fallback(["<unk>", "<s>", "</s>"])
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1),
        ]
    )
    engine.post_processor = single(["<s>"], [], {"<s>": 1})
    return engine, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


def gemma():
    engine = byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>"])
    engine.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.post_processor = single(["<bos>"], [], {"<bos>": 2})
    return engine, {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}


def unigram(names, prepend="always"):
    engine = Engine(models.Unigram())
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    metaspace = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend)
    engine.pre_tokenizer = metaspace
    engine.decoder = decoders.Metaspace("▁", prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(CORPUS, trainer)
    return engine


def t5():
    extra = [f"<extra_id_{number}>" for number in range(4)]
    engine = unigram(["<pad>", "</s>", "<unk>", *extra])
    engine.post_processor = single([], ["</s>"], {"</s>": 1})
    return engine, {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}


def xlm_roberta():
    engine = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    engine.add_special_tokens([MASK])
    engine.post_processor = single(["<s>"], ["</s>"], {"<s>": 0, "</s>": 2})
    roles = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return engine, roles | {"mask": "<mask>"}


STYLES = {
    "bert": (bert, "BertTokenizer", "encoder"),
    "roberta": (roberta, "RobertaTokenizer", "encoder"),
    "xlm-roberta": (xlm_roberta, "XLMRobertaTokenizer", "encoder"),
    "gpt2": (gpt2, "GPT2Tokenizer", "decoder"),
    "gpt_neox": (neox, "GPTNeoXTokenizer", "decoder"),
    "qwen2": (qwen, "Qwen2Tokenizer", "decoder"),
    "smollm2": (smollm, "GPT2Tokenizer", "decoder"),
    "llama3": (llama3, "PreTrainedTokenizerFast", "decoder"),
    "llama2": (llama2, "LlamaTokenizer", "decoder"),
    "gemma": (gemma, "GemmaTokenizer", "decoder"),
    "t5": (t5, "T5Tokenizer", "encoder_decoder"),
}


def write_folder(folder, style):
    make, name, _ = STYLES[style]
    engine, roles = make()
    folder.mkdir(exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, "clean_up_tokenization_spaces": False, "model_max_length": 64}
    config |= {f"{role}_token": token for role, token in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def bundle_of(folder, style):
    """Make a model that the tokenizer could belong to."""
    tokenizer = Tokenizer.load(folder)
    shape = STYLES[style][2]
    sizes = {"layers": 1, "dim": 16, "heads": 2, "context": 64, "vocab_size": tokenizer.vocab_size}
    return Bundle(Transformer(getattr(shapes, shape)(**sizes)), tokenizer)


def theirs_of(folder):
    """Their tokenizer, in the plain class that takes tokenizer.json as it is."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_equal_with_and_without_special_tokens(style, tmp_path):
    folder = write_folder(tmp_path / "tok", style)
    theirs, bundle = theirs_of(folder), bundle_of(folder, style)
    for text in TEXTS:
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert bundle.tokenizer.encode(text) == plain, text
        assert bundle.encode(text) == theirs(text)["input_ids"], text
        assert bundle.tokenizer.decode(plain) == theirs.decode(plain), text
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        if getattr(theirs, f"{role}_token_id") is not None:
            assert getattr(bundle.tokenizer, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_tokenizer_gives_the_same_ids_everywhere(style, tmp_path):
    folder = write_folder(tmp_path / "tok", style)
    bundle = bundle_of(folder, style)
    save(tmp_path / "saved", bundle)
    again, theirs = load(tmp_path / "saved"), theirs_of(tmp_path / "saved")
    for text in TEXTS:
        assert again.encode(text) == bundle.encode(text)
        assert theirs(text)["input_ids"] == bundle.encode(text)


@pytest.mark.parametrize("shape", ["decoder", "encoder", "encoder_decoder"])
def test_our_own_tokenizer_frames_texts_elsewhere_as_here(shape, tokenizer, make_model, tmp_path):
    bundle = Bundle(make_model(shape), tokenizer)
    save(tmp_path, bundle)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat sat", "", "😀"):
        assert theirs(text)["input_ids"] == bundle.encode(text) == load(tmp_path).encode(text)
    # one tokenizer serves models of all shapes: what one of them had around a text does not bind the next
    other = Bundle(make_model("encoder"), Tokenizer.load(tmp_path))
    assert other.encode("the cat")[0] == tokenizer.cls_id


@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_a_cut_text_keeps_its_frame(style, tmp_path):
    folder = write_folder(tmp_path / "tok", style)
    theirs, bundle = theirs_of(folder), bundle_of(folder, style)
    text = "the quick brown fox jumps over the lazy dog"
    expected = theirs(text, truncation=True, max_length=8)["input_ids"]
    assert bundle.encode(text, most=8) == expected
    assert len(expected) == 8


def test_older_folders_name_special_tokens_in_a_file_of_their_own(tmp_path):
    folder = write_folder(tmp_path / "tok", "smollm2")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id == tokenizer.token_to_id("<|im_end|>")


@pytest.mark.parametrize("style", ["bert", "roberta", "xlm-roberta"])
def test_gaps_are_encoded_as_there(style, tmp_path):
    folder = write_folder(tmp_path / "tok", style)
    theirs, bundle = theirs_of(folder), bundle_of(folder, style)
    mark = bundle.tokenizer.id_to_token(bundle.tokenizer.mask_id)
    text = f"the quick {mark} jumps over {mark}."
    found = _gapped_ids(bundle, text.split(mark), bundle.tokenizer.mask_id)
    assert found == theirs(text)["input_ids"]
    assert found.count(bundle.tokenizer.mask_id) == 2
