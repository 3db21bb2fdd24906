"""Chat templates of the common families: the same text and the same ids as transformers gives."""

from __future__ import annotations

import json

import pytest
from family_templates import FAMILIES, QWEN_2
from jinja2.exceptions import TemplateError

from stockpot.errors import TokenizerError
from stockpot.text import ChatTemplate, Message, Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

QUESTION = Message("user", "  What grows here?\n")
ANSWER = Message("assistant", "Barley, oats — and \"peas\" & 'beans' <b>.</b>\n")
AGAIN = Message("user", "Since when? {{ 7 * 7 }} {% raw %}")
SYSTEM = Message("system", "Be brief, and kind.")
TALKS = {
    "one question": [QUESTION],
    "a system prompt": [SYSTEM, QUESTION],
    "two questions": [QUESTION, ANSWER, AGAIN],
    "a whole talk": [SYSTEM, QUESTION, ANSWER, AGAIN, Message("assistant", "Since ever.")],
    "many turns": [SYSTEM, QUESTION, ANSWER, AGAIN, ANSWER, QUESTION],
    "thinking aloud": [QUESTION, Message("assistant", "<think>\nhm\n</think>\n\nPeas."), AGAIN],
}


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Make a family's tokenizer: ours and theirs, from one folder."""
    made = {}

    def make(name):
        if name not in made:
            family = FAMILIES[name]
            folder = tmp_path_factory.mktemp(name)
            Tokenizer.train(corpus, vocab_size=500, special_tokens=family.special).save(
                folder, chat_template=family.source
            )
            path = folder / "tokenizer_config.json"
            config = json.loads(path.read_text())
            config |= {"bos_token": family.bos, "eos_token": family.eos}
            path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
            ours = Tokenizer.load(folder)
            made[name] = ours, ChatTemplate.of(ours), transformers.AutoTokenizer.from_pretrained(folder)
        return made[name]

    return make


def records(talk):
    return [{"role": message.role, "content": message.content} for message in talk]


@pytest.mark.parametrize("prompt", [False, True], ids=["as it stands", "for an answer"])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_is_equal(name, talk, prompt, make):
    _, template, theirs = make(name)
    try:
        expected = theirs.apply_chat_template(
            records(TALKS[talk]), tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError:  # the template itself refuses, there as here
        with pytest.raises(TokenizerError):
            template.render(TALKS[talk], add_generation_prompt=prompt)
        assert talk.startswith(("a ", "many"))
        assert not FAMILIES[name].has_system
        return
    assert template.render(TALKS[talk], add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompts_ids_are_equal(name, talk, make):
    """Even where a template rewrites earlier turns: nothing of a prompt is learned from, so it needs no mask."""
    tokenizer, template, theirs = make(name)
    if TALKS[talk][0].role == "system" and not FAMILIES[name].has_system:
        return
    if TALKS[talk][-1].role == "assistant":
        return
    expected = theirs.apply_chat_template(records(TALKS[talk]), add_generation_prompt=True, return_dict=False)
    found = template.encode(TALKS[talk], tokenizer, add_generation_prompt=True, masked=False)
    assert tokenizer.decode(found.ids) == theirs.decode(expected)
    assert found.ids.tolist() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_what_the_assistant_said(name, make):
    tokenizer, template, _ = make(name)
    talk = [QUESTION, Message("assistant", "Peas."), AGAIN, Message("assistant", "Oats.")]
    if FAMILIES[name].rewrites:
        with pytest.raises(TokenizerError, match="rewrites earlier turns"):
            template.encode(talk, tokenizer)
        return
    chat = template.encode(talk, tokenizer)
    said = tokenizer.decode(chat.ids[chat.loss_mask])
    ends = FAMILIES[name].special
    for end in ends:
        said = said.replace(end, "\n")
    assert said.split() == ["Peas.", "Oats."]


def test_of_several_templates_the_default_one_is_taken(make, tmp_path, corpus):
    """Some folders keep a list of named templates."""
    tokenizer = Tokenizer.train(corpus, vocab_size=500, special_tokens=QWEN_2.special)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    listed = [
        {"name": "tool_use", "template": "{{ raise_exception('tools') }}"},
        {"name": "default", "template": QWEN_2.source},
    ]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.of(Tokenizer.load(tmp_path))
    expected = theirs.apply_chat_template(records([QUESTION]), tokenize=False)
    assert ours is not None
    assert ours.render([QUESTION]) == expected
