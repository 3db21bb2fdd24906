"""Conversations: what is assistant text, what typed text can never do, what a template may not do."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest

from stockpot.errors import TokenizerError
from stockpot.text import DEFAULT_TEMPLATE, SPECIAL_TOKENS, ChatTemplate, Message, Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim"
    " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = ChatTemplate(
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    {"bos_token": "<|bos|>"},
)
TALK = [
    Message("system", "Be brief."),
    Message("user", "Hi!"),
    Message("assistant", "Hello."),
    Message("user", "2 + 2?"),
    Message("assistant", "4"),
]


@pytest.fixture
def tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["byte-bpe"]


@pytest.fixture(scope="module")
def chatml(corpus: list[str]) -> Tokenizer:
    return Tokenizer.train(corpus, vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>"])


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, PLAIN], ids=["default", "without generation blocks"])
def test_the_mask_covers_assistant_text_and_its_end(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    chat = template.encode(TALK, tokenizer)
    assert chat.ids.shape == chat.loss_mask.shape
    assert tokenizer.decode(chat.ids) == template.render(TALK)
    assert tokenizer.decode(chat.ids[chat.loss_mask]) == "Hello.<|end|>4<|end|>"


def test_a_prompt_for_an_answer_is_what_training_saw(tokenizer: Tokenizer) -> None:
    prompt = DEFAULT_TEMPLATE.encode(TALK[:2], tokenizer, add_generation_prompt=True)
    trained = DEFAULT_TEMPLATE.encode(TALK[:3], tokenizer)
    assert not prompt.loss_mask.any()
    assert trained.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    assert trained.loss_mask[len(prompt.ids) :].all()


def test_without_messages_only_the_template_speaks(tokenizer: Tokenizer) -> None:
    assert DEFAULT_TEMPLATE.encode([], tokenizer).ids.tolist() == [tokenizer.bos_id]


TRANSFORMING = {
    "default": DEFAULT_TEMPLATE,
    "plain": PLAIN,
    "trim": ChatTemplate("{% for m in messages %}<|user|>{{ m.content | trim }}<|end|>{% endfor %}"),
    "upper": ChatTemplate(
        "{% for m in messages %}<|user|>{{ m.content | upper | lower }}<|end|>{% endfor %}"
    ),
    "cut": ChatTemplate("{% for m in messages %}<|user|>{{ m.content[:9] }}<|end|>{% endfor %}"),
    "replace": ChatTemplate(
        "{% for m in messages %}<|user|>{{ m.content.replace('x', '') }}<|end|>{% endfor %}"
    ),
    "reverse": ChatTemplate(
        "{% for m in messages %}<|user|>{{ m.content.split(' ')[-1] }}<|end|>{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TRANSFORMING)
def test_typed_spellings_never_become_special(
    name: str, tokenizer: Tokenizer, mutants: Callable[[int, int], list[str]]
) -> None:
    template = TRANSFORMING[name]
    special = set(tokenizer.special_ids.values())
    safe = [Message("user", "a"), Message("user", "b")]
    expected = [number for number in template.encode(safe, tokenizer).ids.tolist() if number in special]
    choose = random.Random(1)
    for text in ["<|end|>", "  <|user|> <|end|>", "\ue000<|end|>\ue001", "x<|bos|>x", *mutants(21, 60)]:
        hostile = [Message("user", text), Message("user", choose.choice(SPECIAL_TOKENS))]
        found = [number for number in template.encode(hostile, tokenizer).ids.tolist() if number in special]
        assert found == expected


def test_typed_text_comes_through_unchanged(
    tokenizer: Tokenizer, mutants: Callable[[int, int], list[str]]
) -> None:
    for text in ["<|end|> \ue000 \ue001 \uf8ff", *mutants(22, 200)]:
        chat = DEFAULT_TEMPLATE.encode([Message("user", text)], tokenizer)
        assert tokenizer.decode(chat.ids) == f"<|bos|><|user|>{text}<|end|>"


@pytest.mark.parametrize(
    ("source", "contents"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ["<|us", "er|>"]),
        ("<|{{ messages[0].content }}|>", ["user"]),
        ("{{ messages[0].content.replace('-', '') }}", ["<-|-user|>"]),
        ("{{ messages[0].content | lower }}", ["<|USER|>"]),
        ("{{ messages[0].content[::-1] }}", [">|resu|<"]),
    ],
)
def test_a_template_that_would_build_a_special_token_from_text_is_refused(
    source: str, contents: list[str], tokenizer: Tokenizer
) -> None:
    special = set(tokenizer.special_ids.values())
    messages = [Message("user", content) for content in contents]
    try:
        found = special.intersection(ChatTemplate(source).encode(messages, tokenizer).ids.tolist())
    except TokenizerError as error:
        assert "typed text become a special token" in str(error)
    else:
        assert not found


@pytest.mark.golden
def test_ids_equal_those_of_transformers(chatml: Tokenizer, tmp_path: object) -> None:
    transformers = pytest.importorskip("transformers")
    chatml.save(str(tmp_path), chat_template=CHATML)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = ChatTemplate.of(Tokenizer.load(str(tmp_path)))
    assert ours is not None
    records = [{"role": message.role, "content": message.content} for message in TALK]
    for prompt in (False, True):
        expected = theirs.apply_chat_template(records, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode(TALK, chatml, add_generation_prompt=prompt).ids.tolist() == expected


@pytest.mark.golden
def test_the_default_template_and_its_mask_equal_those_of_transformers(
    tokenizer: Tokenizer, tmp_path: object
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(str(tmp_path), chat_template=DEFAULT_TEMPLATE.source)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    records = [{"role": message.role, "content": message.content} for message in TALK]
    expected = theirs.apply_chat_template(
        records, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    ours = DEFAULT_TEMPLATE.encode(TALK, tokenizer)
    assert ours.ids.tolist() == expected["input_ids"]
    assert ours.loss_mask.astype(int).tolist() == list(expected["assistant_masks"])


def test_the_template_of_a_tokenizer_is_its_own_or_the_default(
    tokenizer: Tokenizer, chatml: Tokenizer
) -> None:
    assert ChatTemplate.of(tokenizer) == DEFAULT_TEMPLATE
    assert ChatTemplate.of(chatml) is None
    own = Tokenizer(chatml.to_json(), chat_template=CHATML)
    assert ChatTemplate.of(own) == ChatTemplate(CHATML)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'a' * 99999999 }}",
        "{{ 9 ** 9999 }}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% include 'secret' %}",
        "{% import 'os' as os %}",
        "{% if",
        "{{ raise_exception('no such role') }}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_a_template_may_not(source: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="The chat template cannot be used") as error:
        ChatTemplate(source).encode([Message("user", "hi")], tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(t='a') %}{% for i in range(90) %}{% set n.t = n.t + n.t %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped(source: str, tokenizer: Tokenizer) -> None:
    ChatTemplate("warm up").render([])
    start = time.monotonic()
    with pytest.raises(TokenizerError, match="The chat template cannot be used"):
        ChatTemplate(source).encode([Message("user", "hi")], tokenizer)
    assert time.monotonic() - start < 30  # 1 s by itself; the machine may be busy


def test_a_stopped_template_can_be_asked_again(tokenizer: Tokenizer) -> None:
    source = "{% if messages %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    template = ChatTemplate(source)
    with pytest.raises(TokenizerError, match="it was stopped"):
        template.render([Message("user", "hi")])
    assert template.render([]) == "ok"


def test_roles_and_contents_are_checked() -> None:
    with pytest.raises(TokenizerError, match="role 'root'"):
        Message("root", "hi")
    with pytest.raises(TokenizerError, match="is list, not text"):
        Message("user", json.loads("[]"))


def test_the_default_template_knows_three_roles(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="system, user and assistant"):
        DEFAULT_TEMPLATE.encode([Message("tool", "x")], tokenizer)


def test_a_template_that_rewrites_earlier_turns_needs_generation_blocks(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}<|user|>{{ m.content if loop.last else '…' }}<|end|>{% endfor %}"
    with pytest.raises(TokenizerError, match="rewrites earlier turns"):
        ChatTemplate(source).encode(TALK, tokenizer)
