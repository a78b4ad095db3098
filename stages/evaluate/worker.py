"""A file of texts in, log-likelihoods on standard output: the neural metrics.

Run in the model environment by its path: `python -P worker.py REQUEST`. The request is what
neural.py writes; each line of the answer is JSON, {"scores": {key: value}} or {"error": text}.
Ends when standard input does, whose other end is held by the process that started it.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


def end_with_parent() -> None:
    """As the embedded server does: PR_SET_PDEATHSIG would follow the thread that started us."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()  # before the imports, which take seconds

# As in the embedded server: threads that spin while they wait starve each other on a busy machine,
# and what transformers finds it imports, needed or not.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
UNUSED = ("accelerate", "datasets", "deepspeed", "pandas", "peft", "scipy", "sklearn", "torchao")
sys.modules.update({name: sys.modules.get(name) for name in UNUSED})

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

transformers.utils.logging.disable_progress_bar()
torch.set_grad_enabled(False)

BATCH_TOKENS = 2048
BATCH_LOGITS = 2**27
"""Numbers in one batch's logits, at most: 512 MB, and as much again for their softmax."""
WINDOW = 1024
"""Longest window of the general text, in tokens; a model with a shorter context has that."""
TELL_S = 0.2

Turns = Sequence[dict[str, str]]
Row = tuple[list[int], int]
"""Token ids, and how many of them, at the end, are scored."""


# --- log-likelihoods -----------------------------------------------------------------------------


class Scorer:
    """A causal language model that says how likely a text is."""

    def __init__(self, path: str, template: str | None) -> None:
        """Load a folder, or `name@revision` of the hub's local cache. Safetensors only."""
        name, _, revision = (path, "", "") if Path(path).is_dir() else path.partition("@")
        place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            **place,
            # On a CPU in float32 whatever is stored: bfloat16 moves the third digit.
            dtype="auto" if self.device == "cuda" else torch.float32,
            use_safetensors=True,
        )
        self.model.to(self.device).eval()
        self.template = template  # None: the tokenizer's own
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or sys.maxsize
        self.context = min(longest, self.tokenizer.model_max_length)
        self.batch_tokens = min(BATCH_TOKENS, BATCH_LOGITS // config.vocab_size)
        eos = self.model.generation_config.eos_token_id
        several = eos if isinstance(eos, list) else [eos]
        self.ends = {id for id in (*several, self.tokenizer.eos_token_id) if id is not None}

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self, turns: Turns, *, prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        )

    def dialogue(self, turns: Turns) -> Row:
        """The prompt as it is served, and of the last turn what training teaches: its end too.

        That is the rendered dialogue without the prompt's tokens, up to the first token that ends
        an answer. Where the prompt's tokens do not begin it (a tokenizer that joins text across the
        border, a template that writes earlier turns anew), or no token ends it, it is the last turn
        encoded by itself, and the token that ends it if the template writes one.
        """
        prompt = self.encode(self.render(turns[:-1], prompt=True))
        whole = self.encode(self.render(turns, prompt=False))
        answer = whole[len(prompt) :]
        if whole[: len(prompt)] == prompt:
            for last, id in enumerate(answer):
                if id in self.ends:
                    return whole[: len(prompt) + last + 1], last + 1
        written, before = ([id for id in ids if id in self.ends] for ids in (whole, prompt))
        end = written[-1:] if len(written) > len(before) else []
        answer = [*self.encode(turns[-1]["content"]), *end]
        return prompt + answer, len(answer)

    def windows(self, text: str) -> Iterator[Row]:
        """Every token of a plain text once, after those of its window that come before it.

        The first follows the tokenizer's first token, or its last where it has no first; the first
        of a later window follows the token before it (as lm-evaluation-harness rolls).
        """
        known = (self.tokenizer.bos_token_id, *sorted(self.ends))
        lead = next((id for id in known if id is not None), None)
        if lead is None:
            raise ValueError("the tokenizer names no token that begins or ends a text")
        ids = [lead, *self.encode(text)]
        length = min(self.context, WINDOW)
        for start in range(0, len(ids) - 1, length - 1):
            window = ids[start : start + length]
            yield window, len(window) - 1

    def nats(self, rows: Sequence[Row]) -> Iterator[tuple[int, float]]:
        """Negative log-likelihoods, in nats, by index of the row."""
        for group in batches([len(ids) for ids, _ in rows], self.batch_tokens):
            ids, mask = padded([rows[i][0] for i in group])
            first = min(len(rows[i][0]) - rows[i][1] for i in group)
            logits = self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                use_cache=False,
                logits_to_keep=ids.shape[1] - first + 1,
            ).logits[:, :-1]  # (rows, tokens from `first` on, vocabulary)
            losses = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), ids[:, first:].to(self.device), reduction="none"
            ).double()
            for k, i in enumerate(group):
                length, scored = len(rows[i][0]), rows[i][1]
                total = float(losses[k, length - scored - first : length - first].sum())
                if math.isnan(total):
                    raise ValueError("the model's logits are not numbers (NaN)")
                yield i, total


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indexes, the shortest first, of so many rows that they have `tokens` with their padding."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[i] > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (rows, tokens). Padding is on the right, which no causal model sees."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def likelihoods(request: dict[str, Any], template: str | None) -> Iterator[tuple[str, Any]]:
    """By key: nats and tokens, summed over a text's passages; None where the context is short."""
    scorer = Scorer(request["path"], template)
    rows: list[Row] = []
    keys: list[str] = []
    for key, turns in request["dialogues"].items():
        row = scorer.dialogue(turns)
        if len(row[0]) > scorer.context:
            yield key, None
        else:
            keys.append(key)
            rows.append(row)
    for i, nats in scorer.nats(rows):
        yield keys[i], [round(nats, 3), rows[i][1]]
    for key, passages in request["texts"].items():
        windows = [window for passage in passages for window in scorer.windows(passage)]
        nats = sum(nats for _, nats in sorted(scorer.nats(windows)))
        yield key, [round(nats, 3), sum(scored for _, scored in windows)]


# --- the process ---------------------------------------------------------------------------------


def scores(request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for model in request["models"]:
        yield from likelihoods(model, request["template"])


def main(path: Path) -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints belongs in the log

    def tell(**row: Any) -> None:
        answer.write(json.dumps(row) + "\n")
        answer.flush()

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        tell(error=" ".join(f"{kind.__name__}: {error}".split())[:500])

    sys.excepthook = fail
    told = time.monotonic()
    found: dict[str, Any] = {}
    try:
        for key, value in scores(json.loads(path.read_text(encoding="utf-8"))):
            found[key] = value
            if time.monotonic() - told > TELL_S:
                tell(scores=found)
                found, told = {}, time.monotonic()
    finally:
        tell(scores=found)  # also before an error: it is kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
