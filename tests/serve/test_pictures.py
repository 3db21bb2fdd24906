"""Pictures in a chat: data URLs are looked at, everything else is refused by name, and nothing is fetched."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image as Pillow

from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.image import Image
from stockpot.serve.asking import messages_of
from stockpot.serve.protocol import ChatRequest, Refusal
from stockpot.text.chat import Message


def png(colour=(255, 0, 0), size=(8, 8)) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chat(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 3, "temperature": 0}


def picture(address: str) -> dict:
    return {"type": "image_url", "image_url": {"url": address}}


TEXT = {"type": "text", "text": "What is it?"}


def test_a_data_url_becomes_a_picture_in_its_place():
    (message,) = messages_of(ChatRequest(**chat(TEXT, picture(url(png())), TEXT)))
    assert message.content == "What is it?\ufffcWhat is it?"
    assert message.pictures == (Image(png()),)


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest",
        "https://example.org/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,PGI+",
        "data:image/png,raw",
        "data:image/png;base64,not base64!",
        "",
    ],
)
def test_any_other_address_is_refused(address):
    with pytest.raises(Refusal) as refused:
        messages_of(ChatRequest(**chat(picture(address))))
    assert refused.value.status == 400


@pytest.fixture(scope="module")
def eyed(make_eyed):
    return make_eyed(3)


@pytest.fixture(scope="module")
def seeing(eyed, make, run_server):
    with run_server({"tiny": eyed, "blind": make(seed=4)}) as one:
        yield one


def test_a_picture_in_a_chat_is_looked_at(seeing, eyed):
    for colour in ((255, 0, 0), (0, 0, 255)):
        status, found = seeing.post("/v1/chat/completions", chat(picture(url(png(colour))), TEXT))
        assert status == 200
        asked = [Message("user", [Image(png(colour)), "What is it?"])]
        (here,) = Engine(eyed).generate([asked], Sampling(max_tokens=3, temperature=0.0))
        assert found["choices"][0]["message"]["content"] == here.text
        assert found["usage"]["prompt_tokens"] == here.prompt_tokens == len(eyed.encode(asked))


def test_the_list_of_models_says_which_takes_pictures(seeing):
    sees = {one["id"]: "image" in one["can"] for one in seeing.get("/v1/models")[1]["data"]}
    assert sees == {"tiny": True, "blind": False}


def test_bad_pictures_are_the_clients_mistake(seeing):
    for content in (b"nonsense", png()[:40], b""):
        status, found = seeing.post("/v1/chat/completions", chat(picture(url(content)), TEXT))
        assert status == 400 and "picture" in found["error"]["message"]
    status, found = seeing.post("/v1/chat/completions", chat(picture("http://169.254.169.254/x"), TEXT))
    assert status == 400 and "Nothing is fetched" in found["error"]["message"]


def test_a_blind_model_says_so(seeing):
    status, found = seeing.post("/v1/chat/completions", {"model": "blind"} | chat(picture(url(png())), TEXT))
    assert status == 400 and "reads text only" in found["error"]["message"]
