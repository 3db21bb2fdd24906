"""The engine: the one place where a model writes.

Requests share one cache. Each ``step`` writes one token (or a few) for every request that is under way, in one
call of the model, and reads the prompts of some that wait; ``generate`` and ``stream`` are loops over ``submit`` and
``step``, so that every user of the engine runs the same code. How logits become ids is decided in
``sampling``, when text may leave in ``release``. Threads take turns at an engine: what one of them asks for with one call
is done before another's begins, but that pieces of a stream let others in. It opens no file and never changes the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.beam import beam_search
from stockpot.generate.constrain import Constraint, Constraints
from stockpot.generate.inputs import most_prompt_tokens, prompt_ids, reading_only
from stockpot.generate.live import Live
from stockpot.generate.prefixes import Prefixes
from stockpot.generate.refill import refill
from stockpot.generate.release import TextStream
from stockpot.generate.request import (
    Chunk,
    Completion,
    DamagedModelError,
    Fill,
    Prompt,
    Request,
    Sampling,
    Score,
    merged,
)
from stockpot.generate.scheduler import Scheduler
from stockpot.generate.scoring import fill_gaps, score_pairs
from stockpot.generate.vectors import Packed, Pooling, embed_texts

__all__ = ["Engine"]


class Engine:
    """Writes, streams, scores and embeds with one model, for many requests at once.

    Several threads may call it: they wait for each other. What is to be written together goes into one ``generate``, or
    comes by ``submit``.

    Args:
        bundle: the model and its text side.
        slots: most completions under way at once; further ones wait.
        prefix_mib: memory for beginnings that were read before, so that a shared one is computed once; 0: none.
        cache_mib: memory for what is being written; a completion that does not fit beside the others waits. None: as much as
            ``slots`` completions take.
        read_tokens: prompt tokens read in one step; fewer, and a step ends sooner.
        clock: seconds, for ``timeout_s``.
        compiles: on a GPU, let torch compile the step that writes several answers at once: a quicker step, after half a
            minute at the first one. A single one goes through kernels of ours as it is, where these know the model.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int = 8,
        prefix_mib: int = 128,
        cache_mib: int | None = None,
        read_tokens: int = 2048,
        clock: Callable[[], float] = time.monotonic,
        compiles: bool = False,
    ) -> None:
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, not {slots}")
        self.bundle = bundle
        self.slots = slots
        self._model = bundle.model
        self._vocab = self._model.config.vocab_size
        self._stop_ids = bundle.stop_ids
        self._clock = clock
        self._prefixes = Prefixes(self._model, prefix_mib << 20)
        self._packed = Packed(self._model)
        most = None if cache_mib is None else cache_mib << 20
        self._scheduler = Scheduler(
            bundle,
            slots,
            self._prefixes,
            clock,
            read_tokens=read_tokens,
            most_bytes=most,
            compiles=compiles,
        )
        self._lock = threading.RLock()
        self._constraints: Constraints | None = None
        self._early: list[Chunk] = []
        self._numbers = 0

    # --- whole answers ---

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Completion]:
        """Answer prompts; ``n`` completions of each prompt stand together, in the order of the prompts.

        Args:
            prompts: texts, conversations (lists of messages), or lists of ids.
            sampling: how to draw; None takes the defaults that came with the model.

        Raises:
            GenerationError: if a prompt is empty or too long, or the model cannot write.
        """
        if isinstance(prompts, str):
            raise TypeError("generate takes a list of prompts; put the text into a list")
        sampling = self.defaults() if sampling is None else sampling
        encoded = [self._encode(prompt) for prompt in prompts]
        if sampling.beams is not None:
            with self._lock, reading_only(self._model):
                return [one for ids in encoded for one in self._search(ids, sampling)]
        order = sorted(
            range(len(prompts)), key=lambda i: -len(encoded[i])
        )  # like lengths together: less padding
        with self._lock:
            numbers = {
                (i, index): self.submit(Request(encoded[i], sampling, index))
                for i in order
                for index in range(sampling.n)
            }
            chunks = self._run({number: [] for number in numbers.values()})
        return [
            Completion.of(chunks[numbers[i, index]], len(encoded[i]))
            for i in range(len(prompts))
            for index in range(sampling.n)
        ]

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Chunk]:
        """Answer one prompt piece by piece; stopping to iterate cancels the rest.

        Every chunk has text, except that the last one may have none.

        Raises:
            GenerationError: as in :meth:`generate`; also for ``n`` above 1 and for beam search, which cannot
            be streamed.
        """
        sampling = self.defaults() if sampling is None else sampling
        if sampling.n != 1 or sampling.beams is not None:
            raise GenerationError(
                "Only a single drawn completion can be streamed.", "Set n = 1 and leave beams out."
            )
        return self._streamed(self.submit(Request(prompt, sampling)))

    def defaults(self) -> Sampling:
        """Return the sampling settings that came with the model, where it names any."""
        return Sampling.suggested(self.bundle.generation)

    # --- other questions to the model ---

    def score(self, pairs: Sequence[tuple[Prompt, str | Sequence[int]]]) -> list[Score]:
        """Say how likely the model finds each completion of its prompt; in nats.

        Prompts that several pairs share are read once.

        Raises:
            GenerationError: if a completion is empty, a pair exceeds the context, or the model is an encoder.
        """
        with self._lock, reading_only(self._model):
            return score_pairs(self.bundle, pairs, self._prefixes)

    def embed(self, texts: Sequence[str], pool: Pooling | None = None) -> Tensor:
        """Turn texts into vectors ``(batch, dim)``, float32 on the CPU.

        A sentence encoder does as it was trained: its pooling, vectors of length 1 if it has them.

        Args:
            texts: cut to the model's context where they are longer.
            pool: ``"mean"`` of all tokens, the first (``"cls"``) or the last (``"last"``) token's hidden
                state; None: what a sentence encoder was trained with, else the mean.

        Raises:
            GenerationError: if a text is empty, or the vectors would not be finite.
        """
        with self._lock, reading_only(self._model):
            vectors = embed_texts(self.bundle, texts, pool, self._packed)
        if not bool(vectors.isfinite().all()):
            raise DamagedModelError
        return vectors

    def fill(self, text: str, *, top: int = 5) -> list[list[Fill]]:
        """Fill each gap, written with the tokenizer's mask token.

        An encoder gives the ``top`` likeliest tokens of each gap, an encoder-decoder one filling of any length.

        Raises:
            GenerationError: if the model is a decoder, its tokenizer has no mask token, or the text has no gap.
        """
        if self._is_seq2seq:
            return refill(self.bundle, text, lambda ids, sampling: self.generate([ids], sampling)[0])
        with self._lock, reading_only(self._model):
            return fill_gaps(self.bundle, text, top)

    # --- requests ---

    def submit(self, request: Request) -> int:
        """Queue a request; return the number its chunks will carry.

        Raises:
            GenerationError: if the request cannot be answered.
        """
        if request.sampling.beams is not None:
            raise GenerationError("Beam search is not shared with other requests.", "Use generate.")
        ids = self._encode(request.prompt)
        outside = [id for id in request.sampling.logit_bias or {} if id >= self._vocab]
        if outside:
            raise GenerationError(
                f"logit_bias names id {outside[0]}, but the vocabulary has {self._vocab} ids."
            )
        with self._lock:
            self._numbers += 1
            live = Live.begin(
                self._numbers,
                request,
                ids,
                limit=min(request.sampling.max_tokens, self._room(ids)),
                stop_ids=self._stop_ids,
                text=TextStream(self._decode_ids, request.sampling.stop, self.bundle.tokenizer.piece),
                constraint=self._constrained(request.sampling),
                now=self._clock(),
            )
            live.is_source = self.bundle.model.config.shape == "encoder_decoder"
            self._scheduler.add(live)
        return live.number

    def step(self) -> list[Chunk]:
        """Write one token for every request under way and read prompts that wait; return what may leave.

        A quantised model may write several tokens of each, for some hundredths of a second, where all requests are greedy and
        none waits for a free place; they come as so many chunks.
        Every request's first chunk comes when its prompt has been read. Nothing to do gives an empty list. A request that
        cannot go on ends with a chunk that holds its error; others go on.
        """
        with self._lock, reading_only(self._model):
            chunks, self._early = self._early, []
            chunks += self._scheduler.step()
        return chunks

    def cancel(self, number: int) -> None:
        """Forget a request and free its place at once; one that has ended, or never was, is ignored."""
        with self._lock, reading_only(self._model):
            self._early = [chunk for chunk in self._early if chunk.request != number]
            self._scheduler.cancel(number)

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        return self._scheduler.pending

    # --- odds and ends ---

    def _run(self, wanted: dict[int, list[Chunk]]) -> dict[int, list[Chunk]]:
        """Step until the given requests have ended; chunks of others wait for the next ``step``."""
        unfinished, others = set(wanted), []
        try:
            while unfinished:
                step = self.step()
                others += [chunk for chunk in step if chunk.request not in wanted]
                for chunk in (chunk for chunk in step if chunk.request in wanted):
                    if chunk.error is not None:
                        raise chunk.error
                    wanted[chunk.request].append(chunk)
                    if chunk.finish_reason is not None:
                        unfinished.discard(chunk.request)
        finally:
            for number in unfinished:
                self.cancel(number)
            self._early = others + self._early
        return wanted

    def _streamed(self, number: int) -> Iterator[Chunk]:
        held: list[Chunk] = []
        try:
            while True:
                with self._lock:
                    step = self.step()
                    self._early = [chunk for chunk in step if chunk.request != number] + self._early
                for chunk in (chunk for chunk in step if chunk.request == number):
                    if chunk.error is not None:
                        raise chunk.error
                    held.append(chunk)
                    if chunk.text or chunk.finish_reason is not None:
                        joined, held = merged(held), []
                        yield joined
                    if chunk.finish_reason is not None:
                        return
        finally:
            self.cancel(number)

    def _search(self, ids: list[int], sampling: Sampling) -> list[Completion]:
        """Find the best ``n`` completions by beam search."""
        limit = min(sampling.max_tokens, self._room(ids))
        completions = []
        for found in beam_search(self.bundle, ids, sampling, limit):
            text = TextStream(self._decode_ids, sampling.stop)
            body = [id for id in found.ids if id not in self._stop_ids]
            pieces = "".join(text.push(id) for id in body) + text.finish()
            ended = found.is_ended or text.is_stopped
            completions.append(
                Completion(pieces, found.ids, "stop" if ended else "length", len(ids), beam_score=found.score)
            )
        return completions

    def _constrained(self, sampling: Sampling) -> Constraint | None:
        if sampling.json_schema is None:
            return None
        if self._constraints is None:
            self._constraints = Constraints(self.bundle)
        return self._constraints.follow(sampling.json_schema)

    @property
    def _is_seq2seq(self) -> bool:
        return self._model.config.shape == "encoder_decoder"

    def _encode(self, prompt: Prompt) -> list[int]:
        """Turn a prompt into ids, and refuse what cannot be answered before any work."""
        config = self._model.config
        if config.decoder is None:
            raise GenerationError("An encoder reads but cannot write.", "Use fill, embed, or a decoder.")
        if not config.predicts:
            raise GenerationError(
                "This model makes vectors only; it cannot write.", "Use embed, or another model."
            )
        ids = prompt_ids(self.bundle, prompt)
        if not ids:
            raise GenerationError("The prompt is empty.", "Give at least one token to go on from.")
        most = most_prompt_tokens(self.bundle)
        if len(ids) > most:
            raise GenerationError(
                f"The prompt has {len(ids)} tokens, but this model takes {most}.",
                "Shorten the prompt, or use a model with a longer context.",
            )
        return ids

    def _room(self, ids: Sequence[int]) -> int:
        return self.bundle.context - (1 if self._is_seq2seq else len(ids))

    def _decode_ids(self, ids: Sequence[int]) -> str:
        return self.bundle.tokenizer.decode(ids, skip_special=True)
