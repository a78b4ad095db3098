"""Models and references → how likely the texts are, from one process.

The process runs worker.py in the model environment, since torch is not in ours. What it found is
kept in .cache/neural/ by content, and only what is missing is computed.
"""

import contextlib
import json
import math
import os
import subprocess
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.kept import Kept, opened
from stages.core.records import Example, identify

WORKER = Path(__file__).with_name("worker.py")
GENERAL = Path(__file__).with_name("general.txt")
"""Twelve passages in the public domain, a blank line between them: Melville, Carroll, Austen,
Darwin, Lincoln, Doyle, the US Constitution, Psalm 23 (KJV), Shakespeare, Aesop (Jacobs), Smith,
Newton (Motte). No fine-tuning of ours is about them, so what a model loses on them it has
forgotten."""

ModelName = str


@dataclass(frozen=True)
class Model:
    """A model folder, or `name@revision` of the hub's local cache."""

    path: str
    digest: str
    """Names the content, as endpoint.json has it."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model found a text."""

    nats: float
    """Negative log-likelihood, summed over the tokens."""
    tokens: int
    num_bytes: int
    """Of the text as UTF-8, without what a template adds."""


@dataclass(frozen=True)
class Measured:
    references: dict[tuple[ModelName, str], Likelihood]
    """By model and example id; one that is not there is longer than the model's context."""
    general: dict[ModelName, Likelihood]
    """Of general.txt."""


@dataclass(frozen=True)
class _Job:
    """One score that is wanted: a dialogue's or a text's under a model."""

    key: str
    kind: str
    model: Model
    content: Any


def measure(
    python: str,
    models: Mapping[ModelName, Model],
    template: str | None,
    examples: Sequence[Example],
) -> Measured:
    """Score each example's last turn and general.txt under each model.

    `python` is the model environment's interpreter, started only if a score is missing. `template`
    is for a tokenizer that carries none.
    """
    code = store.digest(WORKER)
    passages = GENERAL.read_text(encoding="utf-8").strip().split("\n\n")
    references = {
        (name, example.id): _dialogue(code, model, template, example)
        for name, model in models.items()
        for example in examples
    }
    general = {
        name: _Job(identify(code, "text", model.digest, passages), "texts", model, passages)
        for name, model in models.items()
    }
    jobs = {job.key: job for job in (*references.values(), *general.values())}
    found = _find(python, template, jobs)
    return Measured(
        references={
            name: _likelihood(found[job.key], [job.content[-1]["content"]])
            for name, job in references.items()
            if found[job.key] is not None
        },
        general={name: _likelihood(found[job.key], passages) for name, job in general.items()},
    )


def perplexity(rows: Iterable[Likelihood]) -> float:
    """e to the nats per token, to five digits; inf where that is no finite float.

    Tokens weigh alike, so a long text counts for more. Two models' are comparable only if they
    share a tokenizer: see `bits_per_byte`.
    """
    nats, tokens, _ = _sums(rows)
    try:
        return _rounded(math.exp(nats / tokens))
    except OverflowError:
        return math.inf


def bits_per_byte(rows: Iterable[Likelihood]) -> float:
    """Bits that the model needs for a byte of text, to five digits, whatever its tokenizer."""
    nats, _, num_bytes = _sums(rows)
    return _rounded(nats / math.log(2) / num_bytes)


def _sums(rows: Iterable[Likelihood]) -> tuple[float, int, int]:
    known = list(rows)
    assert known, "of no text there is no perplexity"
    return (
        math.fsum(row.nats for row in known),
        sum(row.tokens for row in known),
        sum(row.num_bytes for row in known),
    )


def _rounded(value: float) -> float:
    """Without the last digits, in which processors and batches differ."""
    return float(f"{value:.5g}")


def _dialogue(code: str, model: Model, template: str | None, example: Example) -> _Job:
    turns = [turn.model_dump() for turn in example.messages]
    key = identify(code, "dialogue", model.digest, template, turns)
    return _Job(key, "dialogues", model, turns)


def _likelihood(found: Sequence[float], texts: Iterable[str]) -> Likelihood:
    nats, tokens = found
    return Likelihood(nats, int(tokens), sum(len(text.encode()) for text in texts))


# --- what is kept, and the process that computes the rest ----------------------------------------


def _find(python: str, template: str | None, jobs: Mapping[str, _Job]) -> dict[str, Any]:
    """The scores of all jobs by key, from .cache/neural/ or from the worker."""
    with opened(store.cache("neural", "scores.db")) as scores:
        found = scores.find(list(jobs))
        missing = [jobs[key] for key in sorted(jobs.keys() - found.keys())]
        if missing:
            progress.note(f"{len(missing)} neural scores; torch starts in some seconds")
            _compute(python, _request(template, missing), len(missing), scores)
            found = scores.find(list(jobs))
    return found


def _request(template: str | None, jobs: Sequence[_Job]) -> dict[str, Any]:
    """What worker.py reads. Models of one digest are one model."""
    models = {job.model.digest: job.model for job in jobs}

    def contents(kind: str, digest: str) -> dict[str, Any]:
        return {
            job.key: job.content for job in jobs if job.kind == kind and job.model.digest == digest
        }

    return {
        "template": template,
        "models": [
            {
                "path": model.path,
                "dialogues": contents("dialogues", digest),
                "texts": contents("texts", digest),
            }
            for digest, model in sorted(models.items())
        ],
    }


def _compute(python: str, request: dict[str, Any], total: int, scores: Kept) -> None:
    """Run the worker and keep its scores as they come; PipelineError where it fails."""
    log = store.workspace("logs", "evaluate-neural.log")
    done = 0
    with contextlib.closing(_rows(python, request, log)) as rows:
        for row in rows:
            if "error" in row:
                said = row["error"]
                raise PipelineError(f"evaluate: the neural metrics failed: {said}; see {log}")
            scores.keep(row["scores"])
            done += len(row["scores"])
            progress.step(done, total, "neural scores")
    if done != total:
        words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise PipelineError(
            f"evaluate: the process of the neural metrics ended early: {words[-1]}; see {log}"
        )
    log.unlink()  # where all went well: an error names it


def _rows(python: str, request: dict[str, Any], log: Path) -> Generator[dict[str, Any], None, None]:
    """What the worker tells. It ends with us, however we end: it watches its standard input."""
    asked = store.workspace("neural", f"request-{os.getpid()}.json")
    # -P: modules beside the worker have names of the standard library's.
    command = [*store.interpreter(python, "evaluate.python"), "-P", str(WORKER), str(asked)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # deploy has fetched what there is to fetch
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        store.write_json(asked, request)
        with (
            log.open("wb") as words,
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
            ) as process,
        ):
            assert process.stdout
            try:
                for line in process.stdout:
                    if line.endswith(b"\n"):  # what a kill tore is not told
                        yield json.loads(line)
            finally:
                process.kill()  # it has said all, or nobody listens any more
    finally:
        asked.unlink(missing_ok=True)
