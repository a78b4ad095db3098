"""Prompts as token ids in, tokens out as they come: one batched decode loop for one model.

Requests join the running batch between two steps and leave it when they end. Rows are padded on
the left and carry their own positions, so a row's tokens are those of `generate` on its prompt
alone; only the last bits of its logits depend on the company that it keeps.
"""

import copy
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# transformers imports what it finds, and none of these is needed to serve: without them a start
# takes 8 s instead of 14 (measured), 210 MB less, and leaves no warnings of torchao in the log.
for _unused in "accelerate datasets deepspeed pandas peft scipy sklearn torchao".split():
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

FinishReason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily, unless `sample` is set."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Token:
    """A generated token. `text` is empty until the bytes so far make whole characters."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True)
class End:
    text: str
    """All of the text, with the stop sequence if one ended it."""
    stop_at: int | None
    """Where in the text that stop sequence starts."""
    finish_reason: FinishReason
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Failure:
    reason: str


Event = tuple[Token, End | None] | Failure


@dataclass(eq=False)
class Generation:
    """A request and how far it is. `emit` is called in the engine's thread.

    A streamed one emits every token, the last with its end; another the last token only.
    """

    prompt: list[int]
    max_new_tokens: int
    emit: Callable[[Event], None]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stream: bool = False
    cancelled: bool = False
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    _plain: list[int] = field(default_factory=list)
    _shown_from: int = 0
    _shown_to: int = 0
    _random: torch.Generator | None = None

    def add(self, id: int, logprob: float, engine: "Engine") -> bool:
        """Take the next token; whether it was the last."""
        tokenizer, eos = engine.decoder, engine.eos
        special = id in eos or id in engine.special
        if not special:
            self._plain.append(id)
        reason: FinishReason | None = None
        if id in eos:
            reason = "eos_token"
        elif len(self.tokens) + 1 == self.max_new_tokens:
            reason = "length"
        seen = len(self.text)
        text = self._more_text(tokenizer, flush=reason is not None)
        self.text += text
        stop_at = None
        for stop in self.stop:
            found = self.text.find(stop, max(0, seen - len(stop) + 1))
            if found >= 0 and (stop_at is None or found < stop_at):
                reason, stop_at = "stop_sequence", found
        if special and not text:
            text = tokenizer.decode([id])
        token = Token(id, text, logprob, special)
        self.tokens.append(token)
        if reason:
            self.emit((token, End(self.text, stop_at, reason, tuple(self.tokens))))
        elif self.stream:
            self.emit((token, None))
        return reason is not None

    def _more_text(self, tokenizer: Any, flush: bool) -> str:
        """The text that the newest token completes: nothing while a character lacks bytes.

        Decoded with the piece before it, since a decoder may treat the first token differently;
        the two offsets are those of TGI's `decode_token`.
        """
        before = tokenizer.decode(self._plain[self._shown_from : self._shown_to])
        now = tokenizer.decode(self._plain[self._shown_from :])
        if not flush and (len(now) <= len(before) or now.endswith("\ufffd")):
            return ""
        self._shown_from, self._shown_to = self._shown_to, len(self._plain)
        return str(now[len(before) :])

    def choose(self, logits: Tensor) -> tuple[int, Tensor]:
        """The next token by this request's sampling, and the logits that it was drawn from."""
        how = self.sampling
        if how.repetition_penalty != 1.0:
            ids = torch.tensor(
                self.prompt + [token.id for token in self.tokens], device=logits.device
            )
            seen = logits[ids]
            penalised = torch.where(
                seen < 0, seen * how.repetition_penalty, seen / how.repetition_penalty
            )
            logits = logits.scatter(0, ids, penalised)
        if not how.sample:
            return int(logits.argmax()), logits
        logits = logits / how.temperature
        if how.top_k is not None and how.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(how.top_k).values[-1], -torch.inf)
        if how.top_p is not None:
            ranked, order = logits.softmax(-1).sort(descending=True, stable=True)
            beyond = ranked.cumsum(-1) - ranked >= how.top_p  # the first token always stays
            logits = logits.index_fill(0, order[beyond], -torch.inf)
        if self._random is None:
            self._random = torch.Generator().manual_seed(how.seed)
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=self._random)
        return int(drawn), logits


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values with room to grow; DynamicLayer copies all of them at every token."""

    def __init__(self, *kept: Tensor) -> None:
        super().__init__()
        self._room: list[Tensor] = []
        if kept:
            self.update(*kept)

    def update(self, *states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (rows, heads, tokens, width); returns all of them."""
        new = states[:2]
        if not self.is_initialized:
            self.lazy_initialization(*new)
        start = self.get_seq_length()
        end = start + new[0].shape[-2]
        if not self._room or end > self._room[0].shape[-2]:
            roomier = [s.new_empty(*s.shape[:2], end + 64, s.shape[-1]) for s in new]
            for room, old in zip(roomier, self._room, strict=False):
                room[:, :, :start] = old[:, :, :start]
            self._room = roomier
        for room, added in zip(self._room, new, strict=True):
            room[:, :, start:end] = added
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


@dataclass
class _Batch:
    """Rows that are decoded together."""

    rows: list[Generation]
    layers: list[_Layer]
    mask: Tensor  # (rows, tokens so far), 0 where a row is padded; padding is on the left
    last: Tensor  # (rows, 1), the token that each row is about to read

    def keep(self, rows: Sequence[int]) -> "_Batch":
        """These rows only, without the columns that are padding in all of them."""
        mask = self.mask[list(rows)]
        mask = mask[:, int(mask.any(0).int().argmax()) :]
        width = self.layers[0].keys.shape[-2]
        start = width - mask.shape[1]
        kept = [
            _Layer(*(t[list(rows)][:, :, start:] for t in (layer.keys, layer.values)))
            for layer in self.layers
        ]
        return _Batch([self.rows[r] for r in rows], kept, mask, self.last[list(rows)])

    def join(self, other: "_Batch") -> "_Batch":
        width = max(self.mask.shape[1], other.mask.shape[1])

        def stack(ours: Tensor, theirs: Tensor, dim: int) -> Tensor:
            pad = torch.nn.functional.pad
            before = (0, 0) if dim == -2 else ()
            return torch.cat([pad(t, (*before, width - t.shape[dim], 0)) for t in (ours, theirs)])

        layers = [
            _Layer(stack(a.keys, b.keys, -2), stack(a.values, b.values, -2))
            for a, b in zip(self.layers, other.layers, strict=True)
        ]
        mask, last = stack(self.mask, other.mask, -1), torch.cat([self.last, other.last])
        return _Batch(self.rows + other.rows, layers, mask, last)


class Engine:
    """A model, its tokenizer and the thread that decodes. `submit` is thread-safe."""

    def __init__(self, path: str, *, dtype: str, device: str, max_batch_size: int) -> None:
        """Load a folder, or `name@revision` of the hub's local cache. Safetensors only."""
        name, _, revision = (path, "", "") if Path(path).is_dir() else path.partition("@")
        place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            **place, dtype=dtype, use_safetensors=True
        )
        self.model.to(device).eval()
        self.max_batch_size = max_batch_size
        self.device = device
        self.dtype = str(self.model.dtype)
        eos = self.model.generation_config.eos_token_id
        several = eos if isinstance(eos, list) else [eos]
        self.eos = frozenset(i for i in (*several, self.tokenizer.eos_token_id) if i is not None)
        self.alive = True
        self.special = frozenset(self.tokenizer.all_special_ids)
        # Encoding in the server's thread and decoding here would meet in one tokenizer.
        self.decoder = copy.deepcopy(self.tokenizer)
        self._prove()
        self._waiting: deque[Generation] = deque()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"decode {path}", daemon=True)
        self._thread.start()

    def _prove(self) -> None:
        """Two rows for two tokens: an architecture that this loop cannot serve fails at its start."""
        ids = self.tokenizer("a b")["input_ids"]
        rows = [Generation(list(ids) * n, 2, emit=lambda _: None) for n in (1, 2)]
        with torch.inference_mode():
            batch = self._prefill(rows)
            if batch:
                self._step(batch.keep([0]).join(batch) if len(batch.rows) > 1 else batch)

    def submit(self, generation: Generation) -> None:
        with self._change:
            if self.alive:
                self._waiting.append(generation)
                self._change.notify()
                return
        generation.emit(Failure("the decode loop has ended; see the server's log"))

    def cancel(self, generation: Generation) -> None:
        """Nobody reads it any more: it leaves the batch before the next step."""
        generation.cancelled = True

    def _work(self) -> None:
        batch: _Batch | None = None
        try:
            with torch.inference_mode():
                while True:
                    batch = self._drop_cancelled(batch)
                    group = self._arrivals(batch)
                    if group and (joined := self._run(self._prefill, group)):
                        batch = batch.join(joined) if batch else joined
                    elif batch:
                        batch = self._run(self._step, batch.rows, batch)
        finally:  # a bug of ours: nobody may wait for ever, and /health tells
            with self._change:
                self.alive = False
                orphans = [*(batch.rows if batch else ()), *self._waiting]
            for generation in orphans:
                generation.emit(Failure("the decode loop has ended; see the server's log"))

    def _arrivals(self, batch: _Batch | None) -> list[Generation]:
        """Those that may join now: the longest waiting, and others of about its length."""
        with self._change:
            while not batch and not self._waiting:
                self._change.wait()
            room = self.max_batch_size - (len(batch.rows) if batch else 0)
            group: list[Generation] = []
            for generation in list(self._waiting)[: max(0, room)]:
                head = len((group or [generation])[0].prompt)
                # Padding costs as much as text: prefill together what differs by a quarter at most.
                if abs(len(generation.prompt) - head) <= 16 + head // 4:
                    group.append(generation)
            for generation in group:
                self._waiting.remove(generation)
        return [generation for generation in group if not generation.cancelled]

    def _drop_cancelled(self, batch: _Batch | None) -> _Batch | None:
        if batch and any(row.cancelled for row in batch.rows):
            kept = [i for i, row in enumerate(batch.rows) if not row.cancelled]
            return batch.keep(kept) if kept else None
        return batch

    def _run(
        self, forward: Callable[..., "_Batch | None"], rows: list[Generation], *batch: _Batch
    ) -> _Batch | None:
        """A forward pass. Where torch fails (memory, mostly) its rows fail, and no others."""
        try:
            return forward(*batch or (rows,))
        except RuntimeError as error:
            for row in rows:
                row.emit(Failure(" ".join(str(error).split())[:300]))
            return None

    def _prefill(self, rows: list[Generation]) -> _Batch | None:
        width = max(len(row.prompt) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, width - len(row.prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self._forward(_Batch(rows, [], mask, ids))

    def _step(self, batch: _Batch) -> _Batch | None:
        mask = torch.nn.functional.pad(batch.mask, (0, 1), value=1)
        return self._forward(_Batch(batch.rows, batch.layers, mask, batch.last))

    def _forward(self, batch: _Batch) -> _Batch | None:
        """Read `last` (rows, tokens), choose each row's next token, and drop the rows that end."""
        positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)[:, -batch.last.shape[1] :]
        cache = Cache(layers=batch.layers) if batch.layers else Cache(layer_class_to_replicate=_Layer)
        logits = self.model(
            input_ids=batch.last,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1].float()  # (rows, vocabulary)
        chosen = logits.argmax(-1)
        for i, row in enumerate(batch.rows):
            if row.sampling.sample or row.sampling.repetition_penalty != 1.0:
                chosen[i], logits[i] = row.choose(logits[i])
        logprobs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
        going = []
        for i, (row, id) in enumerate(zip(batch.rows, chosen.tolist(), strict=True)):
            if logprobs[i] != logprobs[i]:
                row.emit(Failure("the model's logits are not numbers (NaN)"))
            elif not row.add(id, logprobs[i], self):
                going.append(i)
        batch = _Batch(batch.rows, cache.layers, batch.mask, chosen[:, None])
        return batch if len(going) == len(batch.rows) else batch.keep(going) if going else None
