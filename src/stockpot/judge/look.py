"""Look at one text through a model: attention of every head, each token's probability, and what else it expected.

`read` computes plain values, `look` draws them into one HTML file that works from disk. The page's script is inline and
fetches nothing; text reaches it as JSON and is shown as text, never as markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.judge.strict import allowing_its_own

__all__ = ["MAX_TOKENS", "LayerReading", "Reading", "TokenReading", "lens", "look", "read"]

MAX_TOKENS = 256  # 12 layers of 12 heads at this length are about 10 MB of page


@dataclass(frozen=True)
class TokenReading:
    """One token of the text.

    Attributes:
        text: its spelling.
        probability: what the model gave it, 0–1; None where the model did not predict it (a decoder's
            first token; every token of a model that only rates or embeds).
        alternatives: likeliest tokens at its place, with probabilities.
        id: its number.
        alternative_ids: the numbers of the alternatives.
    """

    text: str
    probability: float | None
    alternatives: tuple[tuple[str, float], ...]
    id: int
    alternative_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerReading:
    """What a layer would have said at a token's place, were it the last one.

    Attributes:
        probability: what it gave the token that stands there, 0–1.
        alternatives: its likeliest tokens, with probabilities.
    """

    probability: float
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reading:
    """A text as the model sees it.

    Attributes:
        tokens: one reading a token.
        attention: ``(layers, heads, seq, seq)``, rows are the attending tokens; each row sums to 1.
        shape: "decoder" or "encoder".
        hidden: embeddings, then the states after each layer ``(layers + 1, seq, dim)``.
    """

    tokens: tuple[TokenReading, ...]
    attention: torch.Tensor
    shape: str
    hidden: torch.Tensor = field(repr=False)


@torch.inference_mode()
def read(
    bundle: Bundle, text: str | Sequence[int], *, alternatives: int = 8, most: int = MAX_TOKENS
) -> Reading:
    """Run a text, or ids, through a decoder or an encoder and keep what it attended to and expected.

    A decoder's reading of token t is its prediction from the tokens before; an encoder's is its prediction at t with t
    itself in view.

    Raises:
        GenerationError: if the text is empty or longer than ``most`` tokens or the context, or the model is an encoder-decoder.
    """
    shape = bundle.model.config.shape
    if shape == "encoder_decoder":
        raise GenerationError(
            "Looking inside is for decoders and encoders.", "Give a model of one of those shapes."
        )
    ids = bundle.encode(text) if isinstance(text, str) else list(text)
    limit = min(most, bundle.model.config.context)
    if not 1 <= len(ids) <= limit:
        raise GenerationError(
            f"The text has {len(ids)} tokens; looking inside takes 1 to {limit}.", "Shorten it."
        )
    batch = torch.tensor([ids], device=next(bundle.model.parameters()).device)
    bundle.model.eval()
    with bundle.model.watch() as seen:
        logits = bundle.model(batch).logits
    expected: list[torch.Tensor | None] = [None] * len(ids)
    if bundle.model.config.predicts:
        rows = logits[0].float().softmax(-1)
        # a decoder's row t holds its prediction of token t + 1; nothing predicts the first
        expected = [None, *rows[:-1]] if shape == "decoder" else list(rows)
    tokens = tuple(_token(bundle, token, row, alternatives) for token, row in zip(ids, expected, strict=True))
    attention = torch.stack([layer[0].float() for layer in seen.attention])
    return Reading(tokens, attention, shape, torch.stack([layer[0] for layer in seen.hidden]))


@torch.inference_mode()
def lens(bundle: Bundle, reading: Reading, place: int, *, alternatives: int = 4) -> list[LayerReading] | None:
    """Say what each layer would have predicted at a token's place: its states through the last norm and the output matrix.

    The first entry is the embeddings', the last one the model's own prediction. None where nothing is predicted.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    model = bundle.model
    row = place - 1 if reading.shape == "decoder" else place
    if not model.config.predicts or row < 0:
        return None
    stack = model.decoder or model.encoder
    assert stack is not None
    states = reading.hidden[:, row]
    rows = model.logits(states if stack.norm is None else stack.norm(states)).float().softmax(-1)
    token = reading.tokens[place].id
    return [
        LayerReading(round(float(one[token]), 6), _likeliest(bundle, one, alternatives)[0]) for one in rows
    ]


def _token(bundle: Bundle, token: int, row: torch.Tensor | None, count: int) -> TokenReading:
    """Describe a token by the probabilities ``row`` ``(vocab,)`` at its place; None where nothing was predicted."""
    spelling = _spelt(bundle, token)
    if row is None:
        return TokenReading(spelling, None, (), token)
    others, ids = _likeliest(bundle, row, count)
    return TokenReading(spelling, round(float(row[token]), 6), others, token, ids)


def _likeliest(
    bundle: Bundle, row: torch.Tensor, count: int
) -> tuple[tuple[tuple[str, float], ...], tuple[int, ...]]:
    values, best = row.topk(min(count, row.numel()))
    pairs = zip(best.tolist(), values.tolist(), strict=True)
    return tuple((_spelt(bundle, id), round(p, 5)) for id, p in pairs), tuple(best.tolist())


def _spelt(bundle: Bundle, id: int) -> str:
    return bundle.tokenizer.decode([id]) or bundle.tokenizer.id_to_token(id)


def look(bundle: Bundle, text: str) -> str:
    """Draw a text's reading as one self-contained HTML page; see `read` for what it shows and what it refuses."""
    reading = read(bundle, text)
    scaled = (reading.attention * 255).round().to(torch.uint8)
    data = {
        "tokens": [asdict(token) for token in reading.tokens],
        "layers": scaled.shape[0],
        "heads": scaled.shape[1],
        "attention": base64.b64encode(scaled.contiguous().numpy().tobytes()).decode(),
    }
    # "<" is escaped so that no text can close the script element
    return PAGE.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


PAGE = allowing_its_own("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src @SCRIPT@; style-src @STYLE@">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Look inside</title>
<style>
:root { color-scheme: light dark; --line: #8886; --mark: 47, 126, 216; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
#text { line-height: 2.1; }
#text button { font: inherit; color: inherit; border: 1px solid transparent; border-bottom: 3px solid; border-radius: 4px;
  background: none; padding: 0 .1rem; margin: 0 1px; cursor: pointer; white-space: pre; }
#text button[aria-pressed=true] { outline: 2px solid rgb(var(--mark)); }
.columns { display: flex; flex-wrap: wrap; gap: 2rem; }
table { border-collapse: collapse; } td { padding: .1rem .6rem; border-bottom: 1px solid var(--line); white-space: pre; }
td:last-child { font-variant-numeric: tabular-nums; }
canvas { image-rendering: pixelated; border: 1px solid var(--line); width: min(26rem, 90vw); }
#grid { display: flex; flex-wrap: wrap; gap: 4px; }
#grid canvas { width: 64px; height: 64px; cursor: pointer; } #grid canvas.on { outline: 2px solid rgb(var(--mark)); }
label { margin-right: 1rem; }
</style>
</head>
<body>
<h1>Look inside</h1>
<p>Choose a token. The line under each shows how probable the model found it: green likely, red unlikely, grey not predicted.
The background shows where the chosen token attends in the chosen layer and head.</p>
<div id="text" role="group" aria-label="tokens"></div>
<div class="columns">
<section><h2 id="chosen"></h2><table><tbody id="others"></tbody></table></section>
<section><h2>Attention, row by row: who looks at whom</h2>
<label>layer <select id="layer"></select></label><label>head <select id="head"></select></label><br>
<canvas id="map" role="img" aria-label="attention of the chosen head"></canvas></section>
</div>
<h2>All heads (a row a layer)</h2>
<div id="grid"></div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const n = data.tokens.length;
const weights = Uint8Array.from(atob(data.attention), c => c.charCodeAt(0));
const at = (l, h, q, k) => weights[((l * data.heads + h) * n + q) * n + k] / 255;
const by = id => document.getElementById(id);
const state = {token: n - 1, layer: data.layers - 1, head: 0};
const shown = s => s.replace(/\\n/g, "\\u21b5");
const percent = p => p == null ? "" : (100 * p).toPrecision(3) + " %";
const buttons = data.tokens.map((token, i) => {
  const b = document.createElement("button");
  b.textContent = shown(token.text);
  b.style.borderBottomColor = token.probability == null ? "#888"
    : `hsl(${Math.round(120 * Math.max(0, 1 + Math.log10(token.probability + 1e-4) / 4))} 60% 45%)`;
  b.title = percent(token.probability);
  b.onclick = () => { state.token = i; draw(); };
  by("text").append(b);
  return b;
});
function paint(canvas, l, h) {
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  for (let q = 0; q < n; q++) for (let k = 0; k < n; k++)
    image.data.set([47, 126, 216, 255 * Math.sqrt(at(l, h, q, k))], 4 * (q * n + k));
  context.putImageData(image, 0, 0);
}
const small = [];
for (let l = 0; l < data.layers; l++) {
  for (let h = 0; h < data.heads; h++) {
    const c = document.createElement("canvas");
    c.title = `layer ${l + 1}, head ${h + 1}`;
    c.onclick = () => { state.layer = l; state.head = h; draw(); };
    paint(c, l, h);
    by("grid").append(c);
    small.push(c);
  }
  const line = document.createElement("div");
  line.style.flexBasis = "100%";
  by("grid").append(line);
}
for (const [name, count] of [["layer", data.layers], ["head", data.heads]]) {
  for (let i = 0; i < count; i++) by(name).add(new Option(i + 1, i));
  by(name).onchange = e => { state[name] = +e.target.value; draw(); };
}
function draw() {
  by("layer").value = state.layer;
  by("head").value = state.head;
  small.forEach((c, i) => c.classList.toggle("on", i === state.layer * data.heads + state.head));
  paint(by("map"), state.layer, state.head);
  buttons.forEach((b, k) => {
    b.setAttribute("aria-pressed", k === state.token);
    b.style.background = `rgba(var(--mark), ${0.8 * at(state.layer, state.head, state.token, k)})`;
  });
  const token = data.tokens[state.token];
  by("chosen").textContent = `\\u201c${shown(token.text)}\\u201d ${percent(token.probability)}`;
  by("others").replaceChildren(...token.alternatives.map(([text, p]) => {
    const row = document.createElement("tr");
    for (const value of [shown(text), percent(p)]) row.insertCell().textContent = value;
    return row;
  }));
}
draw();
</script>
</body>
</html>
""")
