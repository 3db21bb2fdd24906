"""The verbs that use a model: generate, fill, embed, draw, chat.

They turn words into prompts and sampling settings, and print what the engine answers. Nothing here draws a
token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, Model, Terminated, verb
from stockpot.errors import ConfigError, GenerationError, StockpotError

if TYPE_CHECKING:
    from stockpot.bundle import Bundle
    from stockpot.generate.request import Prompt, Sampling
    from stockpot.text.chat import Message

__all__ = ["Drawing", "chat", "draw", "embed", "fill", "generate", "kind_of_weights"]

PANEL = "Use"
SAMPLING = "How text is drawn"
Pooling: TypeAlias = Literal["mean", "cls", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Common):
    """Flags of the verbs that draw text; what is not given comes from the model, else from ``Sampling``."""

    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="int8 or int4: round the weights and write faster on a CPU; none: floats. By default none, of smollm2 int4.",
        ),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", rich_help_panel=SAMPLING)
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help="0: always the likeliest token; 1: as the model has it.", rich_help_panel=SAMPLING),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k likeliest tokens only.", rich_help_panel=SAMPLING)
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the likeliest tokens that hold this probability.", rich_help_panel=SAMPLING
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability, as a share of the likeliest.", rich_help_panel=SAMPLING),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Text that ends the answer; may be repeated.", rich_help_panel=SAMPLING
        ),
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other sampling setting, such as beams=4.",
            rich_help_panel=SAMPLING,
        ),
    ] = None

    def settings(self, **more: Any) -> Sampling:
        """Check the flags; what was not given stays unset."""
        from stockpot.config import build
        from stockpot.generate.request import Sampling

        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
        given = {name: getattr(self, name) for name in names} | {
            "stop": tuple(self.stop) if self.stop else None
        }
        return build(Sampling, sets=self.sets or (), flags=given | more)


def _over_defaults(given: Sampling, bundle: Bundle) -> Sampling:
    """Lay what was given over the defaults that came with the model."""
    from stockpot.generate.request import Sampling

    if given.beams is not None:  # beam search draws nothing, so that a model's drawing defaults do not apply
        return given
    known = {key: value for key, value in bundle.generation.items() if key in Sampling.model_fields}
    return Sampling(**known | {key: getattr(given, key) for key in given.model_fields_set})


def _prompt(words: str | None) -> str:
    """Take the prompt from the command line, or from stdin for ``-`` or when something is piped in."""
    if words == "-" or (words is None and not sys.stdin.isatty()):
        return _decoded(sys.stdin.buffer.read())
    return words or ""


def _decoded(data: bytes) -> str:
    """Read what was piped in, or a line of it, without the line end behind it."""
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin: not UTF-8 text ({error.reason} at byte {error.start}).") from None


# --- generate, fill, embed ---


@verb("generate", panel=PANEL, flags=Drawing)
def generate(
    flags: Drawing,
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT|-", help="Text to continue; - reads stdin.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="How many continuations.", rich_help_panel=SAMPLING)
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture before PROMPT, for a model with eyes; may be repeated."),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write JSON that follows this JSON schema.", rich_help_panel=SAMPLING
        ),
    ] = None,
    form: Annotated[
        Literal["text", "json"],
        typer.Option("--format", help="json: write one JSON object.", rich_help_panel=SAMPLING),
    ] = "text",
) -> None:
    """Continue a text; the continuation goes to stdout as it is written.

    A model that was trained on conversations answers better in `stockpot chat`.
    """
    given = flags.settings(n=n, json_schema=_schema(schema, form))
    text = _prompt(prompt)
    from stockpot.generate.engine import Engine
    from stockpot.image import Image
    from stockpot.weights.store import load

    pictures = [Image(file) for file in image or ()]
    for picture in pictures:
        picture.pixels()  # a bad file is told before a model is opened
    parts: list[str | Image] = [*pictures, text]
    given_to_it: Prompt = parts if pictures else text
    bundle = load(
        model, device=flags.device, dtype=flags.dtype, quantize=kind_of_weights(model, flags.quantize, flags)
    )
    sampling = _over_defaults(given, bundle)
    engine = Engine(bundle)
    if sampling.n == 1 and sampling.beams is None and not flags.json:
        reason, wrote = None, False
        for chunk in engine.stream(given_to_it, sampling):
            show.stream(chunk.text)
            reason, wrote = chunk.finish_reason, wrote or bool(chunk.text)
        show.stream("\n")
        if not wrote:
            print(
                f"The model ended the text at once. To ask it: stockpot chat {shlex.quote(model)}",
                file=sys.stderr,
            )
        _refuse_half_json(sampling, [reason])
        return
    completions = engine.generate([given_to_it], sampling)
    shown = [
        show.harmless(one.text if len(completions) == 1 else f"[{i}] {one.text}")
        for i, one in enumerate(completions, 1)
    ]
    show.result(
        flags, "\n".join(shown), {"prompt": text, "completions": [_completion(one) for one in completions]}
    )
    _refuse_half_json(sampling, [one.finish_reason for one in completions])


def _refuse_half_json(sampling: Sampling, reasons: Sequence[str | None]) -> None:
    """Fail if an answer that follows a schema was cut, since half a JSON text is of no use."""
    if sampling.json_schema is not None and any(reason != "stop" for reason in reasons):
        raise GenerationError(
            f"The JSON was cut before its end, after {sampling.max_tokens} tokens or at the end of the context.",
            "Allow more with --max-tokens, or bound the schema (maxLength, maxItems).",
        )


def _schema(file: Path | None, form: str) -> dict[str, Any] | None:
    """Read the schema that an answer has to follow."""
    if file is None:
        return {"type": "object"} if form == "json" else None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON ({error}).", "Give a file that holds a JSON schema.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: a JSON schema is an object, not {type(found).__name__}.")
    return found


def _completion(one: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(one).items() if value not in (None, ())}


@verb("fill", panel=PANEL, without=("seed",))
def fill(
    flags: Common,
    model: Model,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="Text with gaps; - reads stdin.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many fillings of each gap.")] = 5,
    gap: Annotated[str, typer.Option(help="How a gap is written in TEXT.")] = "___",
) -> None:
    """Fill the gaps of a text, written ___, with an encoder's likeliest tokens or an encoder-decoder's spans."""
    words = _prompt(text)
    from stockpot.generate.engine import Engine
    from stockpot.weights.store import load

    bundle = load(model, device=flags.device, dtype=flags.dtype)
    mask = bundle.tokenizer.mask_id
    spelled = words if mask is None else words.replace(gap, bundle.tokenizer.id_to_token(mask))
    gaps = Engine(bundle).fill(spelled, top=top)
    rows = [
        [i, one.token, round(one.probability, 4), one.text] for i, gap in enumerate(gaps, 1) for one in gap
    ]
    show.result(
        flags, show.table(["gap", "token", "probability", "text"], rows), {"text": words, "gaps": gaps}
    )


@verb("embed", panel=PANEL, without=("seed",))
def embed(
    flags: Common,
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT|-", help="Texts; - reads stdin, a text a line.")
    ] = None,
    pool: Annotated[
        Pooling | None,
        typer.Option(help="mean, cls or last; by default what a sentence encoder was trained with."),
    ] = None,
) -> None:
    """Turn texts into vectors: a line of numbers a text."""
    given = texts or ["-"]
    words = [line for one in given for line in (_piped_lines() if one == "-" else [one])]
    from stockpot.generate.engine import Engine
    from stockpot.weights.store import load

    bundle = load(model, device=flags.device, dtype=flags.dtype)
    vectors = Engine(bundle).embed(words, pool=pool).tolist()
    lines = [" ".join(f"{number:.6g}" for number in vector) for vector in vectors]
    found = [{"text": word, "vector": vector} for word, vector in zip(words, vectors, strict=True)]
    show.result(flags, "\n".join(lines), {"vectors": found})


def _piped_lines() -> Iterator[str]:
    """Yield the lines piped in; other ends of lines that Unicode knows stand inside a text."""
    return (_decoded(line).removesuffix("\r") for line in sys.stdin.buffer)


@verb("draw", panel=PANEL, without=("dtype",))
def draw(
    flags: Common,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run of train-draw.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="What to draw; a picture a text.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The PNG to write; pictures stand side by side.")
    ] = Path("drawing.png"),
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of denoising.")] = 25,
    guidance: Annotated[
        float, typer.Option(min=0, help="How closely to follow the text; 1: no more than learned.")
    ] = 2.0,
    zoom: Annotated[int, typer.Option(min=1, max=32, help="Pixels of the file for each that is drawn.")] = 4,
) -> None:
    """Draw what a text says, with a diffusion model."""
    from stockpot.image import save_sheet
    from stockpot.stages.diffusion import draw as paint

    seed = flags.seed or 0
    pictures = paint(model, texts, steps=steps, guidance=guidance, seed=seed, device=flags.device)
    save_sheet(list(pictures), out, zoom=zoom)
    facts = {"file": str(out), "texts": texts, "steps": steps, "guidance": guidance, "seed": seed}
    show.result(flags, f"{out}: {len(texts)} pictures", facts)


# --- chat ---


def kind_of_weights(model: str, quantize: str | None, flags: Common) -> str | None:
    """Choose the kind of weights to write with.

    A known model whose file is packed to 4 bits keeps them on a CPU: they give back what the file holds, and write
    many times as fast.
    """
    if quantize is not None or flags.dtype is not None:
        return None if quantize == "none" else quantize
    from stockpot.device import pick_device
    from stockpot.weights.known import KNOWN

    files = KNOWN[model].files if model in KNOWN and not Path(model).exists() else ()
    is_packed = any(".Q4_" in name for name in files)
    return "int4" if is_packed and pick_device(flags.device).type == "cpu" else None


HELP = "/reset forgets the conversation · /save [FILE] writes it · /quit leaves · Ctrl-C stops an answer"


@verb("chat", panel=PANEL, flags=Drawing)
def chat(
    flags: Drawing,
    model: Model,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the system says first.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the conversation to this JSON-lines file.")
    ] = None,
) -> None:
    """Talk with a model. Lines piped in are answered one after another.

    In the chat: /reset, /save [FILE], /quit; Ctrl-C stops an answer.
    """
    given = flags.settings()
    if save is not None and (save.is_dir() or not save.parent.is_dir()):
        raise ConfigError(f"{save}: the conversation cannot be saved there.", "Name a file in a folder.")
    from stockpot.weights.store import load

    bundle = load(
        model, device=flags.device, dtype=flags.dtype, quantize=kind_of_weights(model, flags.quantize, flags)
    )
    if not bundle.model.config.predicts:
        does = "is a reward model: it rates answers" if bundle.model.config.value_head else "makes vectors"
        raise GenerationError(
            f"{model} {does}; it cannot write.", "Name a model that writes, such as the one it was made from."
        )
    if bundle.template is None:
        raise GenerationError(
            f"{model} has no chat template: it was not trained on conversations.",
            f"Continue a text with it (stockpot generate {shlex.quote(model)} …), or train it on talk (stockpot sft).",
        )
    talk = _Talk(flags, bundle, _over_defaults(given, bundle), system)
    if sys.stdin.isatty() and not flags.quiet:
        print(HELP, file=sys.stderr)
    try:
        talk.run()
    finally:
        if save is not None:
            talk.save(save)


class _Talk:
    """One conversation at a terminal."""

    def __init__(self, flags: Drawing, bundle: Bundle, sampling: Sampling, system: str | None) -> None:
        from stockpot.generate.engine import Engine
        from stockpot.text.chat import Message

        self.flags = flags
        self.bundle = bundle
        self.engine = Engine(bundle, slots=1)
        self.sampling = sampling
        self.opening = [Message("system", system)] if system else []
        self.messages: list[Message] = list(self.opening)

    def run(self) -> None:
        for line in _lines():
            command, _, rest = line.partition(" ")
            if command == "/quit":
                return
            if command == "/reset":
                self.messages = list(self.opening)
                _aside("The conversation is forgotten.")
            elif command == "/save":
                try:
                    self.save(Path(rest.strip() or f"chat-{datetime.now():%Y%m%d-%H%M%S}.jsonl"))
                except OSError as error:  # the conversation goes on, and can be saved elsewhere
                    _aside(f"error: {error.filename}: {error.strerror}")
            elif command in ("/help", "/?"):
                _aside(HELP)
            elif re.fullmatch(r"/[a-z]+", line.strip()):  # a slip of the finger, not a question
                _aside(f"There is no {line.strip()} here: {HELP}")
            elif line.strip():
                self.answer(line)

    def answer(self, line: str) -> None:
        """Answer one line; a request the engine refuses is told and taken back."""
        from stockpot.text.chat import Message

        self.messages.append(Message("user", line))
        try:
            self._make_room()
            text, tokens, reason = self._stream()
        except StockpotError as error:
            self.messages.pop()
            _aside(f"error: {error}")
            return
        self.messages.append(Message("assistant", text))
        if self.flags.json:
            show.document({"role": "assistant", "content": text, "tokens": tokens, "finish_reason": reason})

    def _stream(self) -> tuple[str, int, str]:
        pieces: list[str] = []
        tokens, reason = 0, "cancelled"
        try:
            for chunk in self.engine.stream(self.messages, self._sampling()):
                pieces.append(chunk.text)
                tokens += len(chunk.ids)
                reason = chunk.finish_reason or reason
                if not self.flags.json:
                    show.stream(chunk.text)
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated):
                raise
            _aside(" (stopped)")
        if not self.flags.json:
            show.stream("\n")
        return "".join(pieces), tokens, reason

    def _sampling(self) -> Sampling:
        """Give each turn its own seed, so that a seeded chat does not repeat itself."""
        if self.sampling.seed is None:
            return self.sampling
        return self.sampling.model_copy(update={"seed": self.sampling.seed + len(self.messages)})

    def _make_room(self) -> None:
        """Forget the oldest turns until a quarter of the context is free for the answer."""
        first, most = len(self.opening), self.bundle.context * 3 // 4
        while len(self.messages) > first + 2 and len(self.bundle.encode(self.messages)) > most:
            del self.messages[first : first + 2]
            _aside("(The oldest turn no longer fits the model's context and is forgotten.)")

    def save(self, path: Path) -> None:
        if len(self.messages) <= len(self.opening):
            _aside("There is nothing to save yet.")
            return
        record = {"messages": [{"role": one.role, "content": one.content} for one in self.messages]}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        _aside(f"The conversation is in {path}.")


def _aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """Yield what the user types, or the lines piped in, until the end of input."""
    if not sys.stdin.isatty():
        yield from _piped_lines()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and line editing
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated):
                raise
            _aside("\n(/quit or Ctrl-D leaves)")
