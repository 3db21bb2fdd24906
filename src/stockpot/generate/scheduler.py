"""Who is served when: requests wait, have their prompt read, and are written together, one token a step.

Each step writes one token for every request under way, in one call of the model (several where ``several`` allows it),
and reads prompts of some that wait, a bounded number of tokens at a time. How logits become ids is decided in
``sampling``, when a completion ends in ``live``.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.generate.inputs import pad, seen_both_ways
from stockpot.generate.live import Live, note_damage
from stockpot.generate.prefixes import LEAST, Held, Prefixes, shared_length
from stockpot.generate.recorded import Begun, Recorder
from stockpot.generate.request import Chunk, DamagedModelError, TokenAlternatives, merged
from stockpot.generate.rows import Rows
from stockpot.generate.sampling import Filters, sample
from stockpot.generate.several import write_several
from stockpot.model.native_decoder import NO_NUMBER

__all__ = ["Scheduler"]

# Prompt tokens read in one step of a CPU while others are being written to, so that a long prompt does not hold them up. A card
# takes hardly longer for ten times as many.
BESIDE_TOKENS = 256
AHEAD_TOKENS = 32  # guessed tokens checked in one step, of all requests together
WORTH_WAITING = (
    32  # shared tokens for which a request is read one step later, behind the one it shares them with
)


@dataclass
class _Reading:
    """Prompts that are being read together.

    Attributes:
        members: one request for each different prompt; they own the rows behind the writing ones.
        twins: requests with the same prompt as a member, and which member; they get a copy of its row.
        done: tokens of each member's prompt that its row holds already.
    """

    members: list[Live]
    twins: list[tuple[Live, int]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.members) + len(self.twins)


class Scheduler:
    """Shares one model and one cache among requests.

    Args:
        bundle: the model and its text side.
        slots: most requests under way at once.
        prefixes: beginnings that were read before.
        clock: seconds, for deadlines.
        read_tokens: prompt tokens read in one step.
        most_bytes: memory for the cache; who does not fit waits until others have ended; None: as much as it takes.
        compiles: on a GPU, let torch compile the step that writes.
    """

    def __init__(
        self,
        bundle: Bundle,
        slots: int,
        prefixes: Prefixes,
        clock: Callable[[], float],
        *,
        read_tokens: int,
        most_bytes: int | None = None,
        compiles: bool = False,
    ) -> None:
        self.slots, self._read_tokens = slots, read_tokens
        self._prefixes, self._clock = prefixes, clock
        self._model, self._bundle = bundle.model, bundle
        self._is_seq2seq = bundle.model.config.shape == "encoder_decoder"
        self._rows = Rows(bundle.model, bundle.context, most_bytes)
        self._recorder = Recorder(bundle.model, compiles=compiles)
        self._waiting: deque[Live] = deque()
        self._reading: _Reading | None = None
        self._writing: list[Live] = []
        self._filters: Filters | None = None
        self._next: Tensor | None = None
        self._begun: Begun | None = None

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        reading = 0 if self._reading is None else self._reading.count
        return len(self._waiting) + reading + len(self._writing)

    def add(self, live: Live) -> None:
        """Let a request wait its turn."""
        self._waiting.append(live)

    def step(self) -> list[Chunk]:
        """Write one token for every request under way, and read prompts that wait."""
        chunks = self._expire()
        if self._writing:
            chunks += self._write()
        if self._reading is None and self._waiting and len(self._writing) < self.slots:
            self._admit()
        if self._reading is not None:
            chunks += self._read()
        return chunks

    def cancel(self, number: int) -> None:
        """Forget a request and free its row at once; an unknown number is ignored."""
        self._waiting = deque(live for live in self._waiting if live.number != number)
        if self._reading is not None:
            self._reading.twins = [twin for twin in self._reading.twins if twin[0].number != number]
            for place, live in enumerate(self._reading.members):
                if live.number == number:
                    self._drop_reading(place)
                    break
        for row, live in enumerate(self._writing):
            if live.number == number:
                self._take_back()
                self._free(row)
                break

    def _expire(self) -> list[Chunk]:
        """End every request whose time is up."""
        reading = self._reading
        under_way = [*self._waiting, *self._writing]
        if reading is not None:
            under_way += [*reading.members, *(live for live, _ in reading.twins)]
        if all(live.deadline is None for live in under_way):
            return []
        now = self._clock()
        late = [live for live in under_way if live.deadline is not None and live.deadline <= now]
        for live in late:
            self.cancel(live.number)
        return [live.end("timeout") for live in late]

    # --- reading prompts ---

    def _admit(self) -> None:
        """Take requests from the queue, in order, as long as there are slots and the batch stays small.

        A request that begins as one of the batch does waits a step, and then takes over what that one read.
        """
        if not self._writing:
            self._recorder.refresh()
        reading = _Reading([])
        found: list[tuple[Held | int | None, int]] = []
        longest, budget = 0, self._budget
        places: dict[tuple[int, ...], int] = {}
        while self._waiting and len(self._writing) + reading.count < self.slots:
            live = self._waiting[0]
            key = tuple(live.prompt)
            if key in places and self._rows.has_room(self._alive(reading, live)):
                reading.twins.append((self._waiting.popleft(), places[key]))
                continue
            if not self._rows.has_room(self._alive(reading, live)):
                break
            known = self._known(live.prompt)
            shared = max((shared_length(live.prompt, one.prompt) for one in reading.members), default=0)
            if self._prefixes.is_on and shared >= known[1] + WORTH_WAITING:
                break
            longest = max(longest, len(key) - known[1])
            if reading.members and longest * (len(reading.members) + 1) > budget:
                break
            places[key] = len(reading.members)
            found.append(known)
            reading.members.append(self._waiting.popleft())
        if not reading.members:
            return
        start = self._rows.count
        self._rows.add(len(reading.members), max(self._alive(reading)))
        for row, (source, tokens) in enumerate(found, start):
            if isinstance(source, Held):
                self._rows.fill(row, source, tokens)
            elif source is not None:
                self._rows.copy(source, row, tokens)
        reading.done = [tokens for _, tokens in found]
        self._reading = reading

    def _alive(self, reading: _Reading, *more: Live) -> list[int]:
        """Return how many tokens each request under way may come to, and those that are to be read with them."""
        both = [*self._writing, *reading.members, *(live for live, _ in reading.twins), *more]
        return [len(live.prompt) + live.limit for live in both]

    @property
    def _budget(self) -> int:
        """Prompt tokens to read in this step."""
        is_slow = self._writing and self._model.device.type != "cuda"
        return BESIDE_TOKENS if is_slow else self._read_tokens

    def _known(self, prompt: list[int]) -> tuple[Held | int | None, int]:
        """Find who holds the longest beginning of a prompt: a row being written to, or the store; and how long it is."""
        if not self._prefixes.is_on:
            return None, 0
        best: tuple[Held | int | None, int] = self._prefixes.find(prompt)
        for row, live in enumerate(self._writing):
            length = shared_length(live.prompt, prompt[:-1])
            if length > max(best[1], LEAST - 1):
                best = row, length
        return best

    def _read(self) -> list[Chunk]:
        """Read the next piece of the prompts; once they are read, write each request's first token."""
        assert self._reading is not None
        reading, start = self._reading, len(self._writing)
        logits = self._read_source(reading) if self._is_seq2seq else self._read_piece(reading)
        if logits is None:
            return []
        self._reading = None
        origins = list(range(len(reading.members))) + [place for _, place in reading.twins]
        if reading.twins:
            self._rows.add(len(reading.twins), max(self._alive(reading)))
            for row, (_, place) in enumerate(reading.twins, start + len(reading.members)):
                self._rows.copy(start + place, row)
            logits = logits[torch.tensor(origins, device=logits.device)]
        begun = reading.members + [live for live, _ in reading.twins]
        for live, is_sound in zip(begun, logits.amax(-1).isfinite().tolist(), strict=True):
            if not is_sound:
                live.failure = DamagedModelError()
        self._writing += begun
        self._changed()
        return self._choose(
            logits, begun, start, Filters.of([live.sampling for live in begun], logits.device)
        )

    def _read_piece(self, reading: _Reading) -> Tensor | None:
        """Read on in each prompt; return the logits ``(members, vocab)`` at their ends, or None before them.

        Several prompts are read to their ends at once; one alone may take several steps.
        """
        start, device = len(self._writing), self._model.device
        in_parts = len(reading.members) == 1 and self._model.config.main.attends == "causal"
        most = self._budget if in_parts else sys.maxsize
        parts = zip(reading.members, reading.done, strict=True)
        pieces = [live.prompt[done : done + most] for live, done in parts]
        ids, real = pad(pieces, device)
        lengths = [len(piece) for piece in pieces]
        view = self._rows.view(start, start + len(pieces))
        both = seen_both_ways(self._bundle, ids)
        out = self._model(ids, attention_mask=real, segments=both, cache=view, last=0)
        self._rows.grew(start, lengths)
        reading.done = [done + length for done, length in zip(reading.done, lengths, strict=True)]
        if reading.done[0] < len(reading.members[0].prompt):
            return None
        ends = torch.tensor(lengths, device=device) - 1
        return self._model.logits(out.hidden[torch.arange(len(pieces), device=device), ends])

    def _read_source(self, reading: _Reading) -> Tensor:
        """Read sources with the encoder and let the decoder begin; return logits ``(members, vocab)``."""
        start, device = len(self._writing), self._model.device
        sources = [live.prompt for live in reading.members]
        source, source_mask = pad(sources, device)
        if source_mask is None:
            source_mask = torch.ones_like(source, dtype=torch.bool)
        view = self._rows.view(start, start + len(sources))
        first = torch.full((len(sources), 1), self._bundle.start_id, device=device)
        out = self._model(first, source=source, source_mask=source_mask, cache=view, last=1)
        self._rows.grew(start, [1] * len(sources))
        self._rows.keep_memories(start, view, [len(ids) for ids in sources])
        logits: Tensor = out.logits[:, -1]
        return logits

    # --- writing ---

    def _write(self) -> list[Chunk]:
        """Write a token for every request under way, or several where that is all there is to do, in one call of the model."""
        writing = self._writing
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return self._choose(begun.logits, writing[: begun.count], 0, self._filters_of(begun.count))
        guesses = [live.guess() for live in writing]
        if any(guesses):
            return self._write_ahead(_share(guesses, AHEAD_TOKENS))
        if self._next is None:
            self._next = torch.tensor([[live.ids[-1]] for live in writing], device=self._model.device)
        if self._reading is None and (not self._waiting or len(writing) >= self.slots):
            several = write_several(self._model, self._next, self._rows, writing, self._clock())
            if several is not None:
                return self._accept_several(several)
        logits = self._recorder.step(self._next, self._rows)
        if logits is None:
            view = self._rows.view(0, len(writing))
            logits = self._model(self._next, cache=view, last=1).logits[:, -1]
        self._rows.grew(0, [1] * len(writing))
        return self._choose(logits, writing, 0, self._filters_of(len(writing)))

    def _filters_of(self, count: int) -> Filters:
        """Return the filters of the first requests under way, kept as long as these are all."""
        if count == len(self._writing) and self._filters is not None:
            return self._filters
        found = Filters.of([live.sampling for live in self._writing[:count]], self._model.device)
        if count == len(self._writing):
            self._filters = found
        return found

    def _begin_next(self, drawn: Tensor) -> None:
        """Begin to write behind ids just drawn for the first rows, which nobody has looked at yet.

        A request that they end has been run once too often: its row is freed with one more token in it.
        """
        writing = self._writing
        ends = [len(live.ids) + 1 >= live.limit for live in writing]
        if not self._recorder.is_on or all(ends) or any(live.lookup is not None for live in writing):
            return
        others = [[live.ids[-1]] for live in writing[len(drawn) :]]
        ids = drawn.unsqueeze(1)
        if others:
            ids = torch.cat([ids, torch.tensor(others, device=ids.device)])
        logits = self._recorder.step(ids, self._rows)
        if logits is not None:
            self._rows.grew(0, [1] * len(writing))
            self._begun = Begun(logits, len(writing))

    def _take_back(self) -> None:
        """Let the rows be as if no next step had been begun."""
        if self._begun is not None:
            for row in range(self._begun.count):
                self._rows.set_length(row, self._rows.lengths[row] - 1)
            self._begun = self._next = None

    def _accept_several(self, steps: list[list[int]]) -> list[Chunk]:
        """Hand each request the ids of some steps, in the order of steps, up to where it ends; take finished ones out."""
        writing, before = list(self._writing), list(self._rows.lengths)
        self._rows.grew(0, [len(steps)] * len(writing))
        self._next = torch.tensor(steps[-1]).unsqueeze(1)
        chunks: list[Chunk] = []
        ended: dict[int, int] = {}  # row → how many of its ids it took
        for number, ids in enumerate(steps, 1):
            for row, (live, id) in enumerate(zip(writing, ids, strict=True)):
                if row not in ended:
                    if id == NO_NUMBER:
                        live.failure = DamagedModelError()
                    chunks.append(live.accept(max(id, 0)))
                    if chunks[-1].finish_reason is not None:
                        ended[row] = number
        for row in sorted(ended, reverse=True):
            self._rows.set_length(row, before[row] + ended[row])
            self._free(row)
        return chunks

    def _write_ahead(self, guesses: list[list[int]]) -> list[Chunk]:
        """Run every request's next token and its guesses; keep the tokens that the model would have written too."""
        writing = self._writing
        rows = [[live.ids[-1], *guess] for live, guess in zip(writing, guesses, strict=True)]
        ids, real = pad(rows, self._model.device)
        before = list(self._rows.lengths[: len(writing)])
        view = self._rows.view(0, len(writing))
        logits = self._model(ids, attention_mask=real, cache=view).logits
        self._rows.grew(0, [len(row) for row in rows])
        chunks: list[Chunk] = []
        for row, (live, guess) in enumerate(zip(writing, guesses, strict=True)):
            pieces: list[Chunk] = []
            for at, guessed in enumerate([*guess, None]):
                pieces.append(self._choose_one(logits[row, at : at + 1], live))
                if pieces[-1].finish_reason is not None or pieces[-1].ids[0] != guessed:
                    break
            if live.lookup is not None and guess:
                live.lookup.learn(len(guess), len(pieces) - 1)
            self._rows.set_length(row, before[row] + len(pieces))
            chunks.append(merged(pieces))
        self._next = None
        self._drop_ended(chunks, 0)
        return chunks

    def _choose_one(self, logits: Tensor, live: Live) -> Chunk:
        """Choose the next id of one request by logits ``(1, vocab)``."""
        logits = logits.float()
        note_damage(logits, [live])
        reported = self._report(logits, [live])
        if live.is_adjusted:
            live.adjust(logits)
        id = int(sample(logits, Filters.of([live.sampling], logits.device), [live.generator]))
        return live.accept(id) if reported is None else live.accept(id, *reported.of(0, id))

    def _choose(self, logits: Tensor, live: Sequence[Live], start: int, filters: Filters) -> list[Chunk]:
        """Choose the next id of some requests, from row ``start`` on; take finished ones out."""
        logits = logits.float()
        note_damage(logits, live)
        reported = self._report(logits, live)
        for row, one in enumerate(live):
            if one.is_adjusted:
                one.adjust(logits[row : row + 1])
        drawn = sample(logits, filters, [one.generator for one in live])
        fetched = self._recorder.fetch(drawn)
        if start == 0:
            self._next = drawn.unsqueeze(1) if len(drawn) == len(self._writing) else None
            self._begin_next(drawn)
        ids = fetched()
        if reported is None:
            chunks = [one.accept(id) for one, id in zip(live, ids, strict=True)]
        else:
            chunks = [
                one.accept(id, *reported.of(row, id))
                for row, (one, id) in enumerate(zip(live, ids, strict=True))
            ]
        self._drop_ended(chunks, start)
        return chunks

    def _drop_ended(self, chunks: Sequence[Chunk], start: int) -> None:
        """Take out the requests that ended, of those from row ``start`` on."""
        for row in range(len(chunks) - 1, -1, -1):
            if chunks[row].finish_reason is not None:
                self._free(start + row)

    def _report(self, logits: Tensor, live: Sequence[Live]) -> _Report | None:
        wanted = [one.sampling.logprobs for one in live]
        if all(count is None for count in wanted):
            return None
        return _Report(logits.log_softmax(-1), wanted)

    def _free(self, row: int) -> None:
        """Take a writing request out; the last one takes its row, and a reading one the row behind it.

        What its row holds is kept for requests that begin the same.
        """
        live, last = self._writing[row], len(self._writing) - 1
        self._prefixes.keep((live.prompt + live.ids)[: self._rows.lengths[row]], self._rows.cache, row)
        if row != last:
            self._rows.copy(last, row)
            self._writing[row] = self._writing[last]
        self._writing.pop()
        if self._begun is not None and row < self._begun.count:
            self._begun.free(row)
            self._begun = self._begun if self._begun.count else None
        if self._reading is not None and self._reading.members:
            self._rows.copy(self._rows.count - 1, last)
            members, done = self._reading.members, self._reading.done
            members.insert(0, members.pop())
            done.insert(0, done.pop())
            turned = {place: (place + 1) % len(members) for place in range(len(members))}
            self._reading.twins = [(live, turned[place]) for live, place in self._reading.twins]
        self._rows.drop_last()
        self._changed()

    def _drop_reading(self, place: int) -> None:
        """Take out a request that is being read; a twin takes over, or the last member takes its place."""
        assert self._reading is not None
        members, twins = self._reading.members, self._reading.twins
        for index, (live, of) in enumerate(twins):
            if of == place:
                members[place] = live
                twins.pop(index)
                return
        last = len(members) - 1
        if place != last:
            self._rows.copy(len(self._writing) + last, len(self._writing) + place)
            members[place] = members[last]
            self._reading.done[place] = self._reading.done[last]
            self._reading.twins = [(live, place if of == last else of) for live, of in twins]
        members.pop()
        self._reading.done.pop()
        self._rows.drop_last()
        if not members:
            self._reading = None

    def _changed(self) -> None:
        self._filters, self._next = None, None


def _share(guesses: list[list[int]], most: int) -> list[list[int]]:
    """Shorten guesses so that all of them together are about ``most`` tokens; each keeps one at least."""
    count = sum(1 for guess in guesses if guess)
    return [guess[: max(1, most // count)] for guess in guesses]


class _Report:
    """Log-probabilities of one step, for the requests that asked for them."""

    def __init__(self, log_probs: Tensor, wanted: Sequence[int | None]) -> None:
        self._log_probs, self._wanted = log_probs, wanted
        most = max(count or 0 for count in wanted)
        self._best = log_probs.topk(min(most, log_probs.shape[1]), dim=-1) if most else None

    def of(self, row: int, id: int) -> tuple[float, TokenAlternatives] | tuple[()]:
        """Return the log-probability of the id drawn in a row, and the row's likeliest ids."""
        count = self._wanted[row]
        if count is None:
            return ()
        log_prob = float(self._log_probs[row, id])
        if not count or self._best is None:
            return log_prob, ()
        values, ids = self._best.values[row, :count].tolist(), self._best.indices[row, :count].tolist()
        return log_prob, tuple(zip(ids, values, strict=True))
