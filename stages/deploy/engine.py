"""Prompts as token ids in, tokens out as they come: one batched decode loop for one model.

Requests join the running batch between two steps and leave it when they end. Rows are padded on
the left and carry their own positions, so a row's tokens are those of `generate` on its prompt
alone; only the last bits of its logits depend on the company that it keeps.
"""

import copy
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.deploy.generation import Failure, Generation

# OpenMP's threads spin while they wait, and on a busy machine they spin against each other: the
# same 2 cores gave 36 answers a minute spinning and 1,700 sleeping. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# transformers imports what it finds, and none of these is needed to serve: without them a start
# takes 8 s instead of 14 (measured), 210 MB less, and leaves no warnings of torchao in the log.
UNUSED = ("accelerate", "datasets", "deepspeed", "pandas", "peft", "scipy", "sklearn", "torchao")
sys.modules.update({name: sys.modules.get(name) for name in UNUSED})

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.cache_utils import Cache, DynamicLayer  # noqa: E402

transformers.utils.logging.disable_progress_bar()


class _Layer(DynamicLayer):
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
        added = self.tokenizer.added_tokens_decoder  # all_special_ids knows the named ones only
        self.special = frozenset(id for id, token in added.items() if token.special)
        # Encoding in the server's thread and decoding here would meet in one tokenizer.
        self.decode = copy.deepcopy(self.tokenizer).decode
        self._prove()
        self._waiting: deque[Generation] = deque()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"decode {path}", daemon=True)
        self._thread.start()

    def _prove(self) -> None:
        """Two rows, two tokens: an architecture that this loop cannot serve fails at its start."""
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
        cache = (
            Cache(layers=batch.layers) if batch.layers else Cache(layer_class_to_replicate=_Layer)
        )
        logits = (
            self.model(
                input_ids=batch.last,
                attention_mask=batch.mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )  # (rows, vocabulary)
        chosen = logits.argmax(-1)
        for i, row in enumerate(batch.rows):
            if row.sampling.sample or row.sampling.repetition_penalty != 1.0:
                chosen[i], logits[i] = choose(row, logits[i])
        logprobs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
        going = []
        for i, (row, id) in enumerate(zip(batch.rows, chosen.tolist(), strict=True)):
            if logprobs[i] != logprobs[i]:
                row.emit(Failure("the model's logits are not numbers (NaN)"))
            elif not row.add(id, logprobs[i], self):
                going.append(i)
        batch = _Batch(batch.rows, cache.layers, batch.mask, chosen[:, None])
        return batch if len(going) == len(batch.rows) else batch.keep(going) if going else None


def choose(row: Generation, logits: Tensor) -> tuple[int, Tensor]:
    """The next token by the request's sampling, and the logits that it was drawn from."""
    how = row.sampling
    if how.repetition_penalty != 1.0:
        ids = torch.tensor(row.prompt + [token.id for token in row.tokens], device=logits.device)
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
    # Of the seed and the token's place alone, and so the same in any company.
    random = torch.Generator().manual_seed(hash((how.seed, len(row.tokens))) % 2**63)
    drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=random)
    return int(drawn), logits
