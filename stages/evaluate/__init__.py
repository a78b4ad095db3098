"""Examples × systems → answers, ROUGE by track, and a report that says what they are worth."""

import csv
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages import answer as answering
from stages.answer import endpoint as serving
from stages.answer.endpoint import Endpoint
from stages.answer.retrieval import Index
from stages.core import config, model, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Answer, Example, Reject, System
from stages.evaluate import metrics, report, rouge, verdict

__all__ = ["Config", "run"]

METRIC = "rougeL_f1"
"""What the verdict is about."""


class Config(config.Base):
    systems: Annotated[tuple[System, ...], Field(min_length=1)]
    """Who answers the test questions: any of quote, base, base_rag, tuned, tuned_rag."""
    stemming: bool
    """Whether ROUGE compares stems instead of words."""
    concurrency: Annotated[int, Field(gt=0)]
    """Questions that are asked at the same time."""
    resamples: Annotated[int, Field(ge=1000)]
    """Resamples of the pages, and permutations, that intervals and p-values rest on."""
    seed: int
    """Seed of the resampling."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of questions that may go unanswered before the stage fails."""


def run(
    cfg: Config,
    answer: answering.Config,
    model: model.Config,
    test: Path,
    index: Path,
    endpoint: Path,
    weights: Path,
    out: Path,
) -> dict[str, float]:
    """Ask every system every test question; `weights` holds the models that `endpoint` serves."""
    examples = list(store.read(test, Example))
    if not examples:
        raise PipelineError(
            f"{test}: no test questions; raise synthesize.num_same_fact or the shares of the "
            "partitions, or crawl more pages"
        )
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    opened = Index.open(index)
    answers, rejects, seconds = _ask_all(cfg, answer, examples, opened, endpoint)
    if len(rejects) > cfg.max_reject_rate * len(examples) * len(cfg.systems):
        raise PipelineError(
            f"evaluate: {len(rejects)} of {len(examples) * len(cfg.systems)} questions went "
            f"unanswered (evaluate.max_reject_rate {cfg.max_reject_rate}); the first: "
            f"{rejects[0].detail}"
        )
    store.write(out / "answers.jsonl", answers)
    store.write(out / "rejects.jsonl", rejects)

    scorer = rouge.Scorer(cfg.stemming)
    by_id = {example.id: example for example in examples}
    chunks = {chunk.id: chunk for chunk in opened.chunks}
    scores = {
        (row.system, row.example_id): metrics.score(row, by_id[row.example_id], chunks, scorer)
        for row in answers
    }
    summary = metrics.summarize(cfg.systems, examples, scores)
    store.write_json(out / "metrics.json", summary)
    store.write_text(out / "rouge.csv", _table(summary))
    judged = verdict.judge(cfg.systems, examples, scores, METRIC, cfg.seed, cfg.resamples)
    judged["base"] = report.describe(model)
    store.write_json(out / "verdict.json", judged)
    store.write_text(out / "report.html", report.render(judged, summary, examples, answers, scores))
    store.write_json(
        out / "timings.json", {"total_s": time.monotonic() - began, "answer_s": seconds}
    )
    return {
        f"{track}.{system}.{name}": figures[name]
        for track, systems in summary["tracks"].items()
        for system, figures in systems.items()
        for name in ("rouge1_f1", "rouge2_f1", "rougeL_f1", "rougeLsum_f1")
    } | {"num_questions": len(examples), "num_answers": len(answers)}


def _ask_all(
    cfg: Config, asking: answering.Config, examples: Sequence[Example], index: Index, manifest: Path
) -> tuple[list[Answer], list[Reject], dict[str, float]]:
    """Answers ordered by system and example, what went unanswered, and mean seconds by system."""
    answers: list[Answer] = []
    rejects: list[Reject] = []
    seconds: dict[str, float] = {}
    done = 0
    with serving.start(manifest) as server, ThreadPoolExecutor(cfg.concurrency) as pool:
        for system in cfg.systems:

            def ask(example: Example, system: System = system) -> Answer | Reject:
                return _ask(system, example, index, server, asking)

            began = time.monotonic()
            for row in pool.map(ask, examples):
                if isinstance(row, Answer):
                    answers.append(row)
                else:
                    rejects.append(row)
                done += 1
                progress.step(done, len(examples) * len(cfg.systems), f"answers ({system})")
            seconds[system] = (time.monotonic() - began) / len(examples)
    assert len(answers) + len(rejects) == len(examples) * len(cfg.systems)
    return answers, rejects, seconds


def _ask(
    system: System, example: Example, index: Index, server: Endpoint, asking: answering.Config
) -> Answer | Reject:
    turns = example.messages[:-1]  # the last is the reference
    try:
        said = answering.ask(system, turns, index, server, asking)
    except serving.RefusedError as error:
        return Reject(id=example.id, reason=f"{system}_unanswered", detail=error.reason)
    return Answer(
        example_id=example.id,
        system=system,
        question=example.question,
        answer=said.text,
        reference=example.answer,
        chunk_ids=tuple(hit.chunk.id for hit in said.hits),
        citations=said.citations,
        tokens=said.tokens,
    )


def _table(summary: dict[str, Any]) -> str:
    """The scores as CSV, a row per track and system: what `dvc plots` draws."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "track", *(f"{name}_f1" for name in rouge.NAMES)])
    for track, systems in summary["tracks"].items():
        for system, figures in systems.items():
            row = [f"{figures[f'{name}_f1']:.6f}" for name in rouge.NAMES]
            writer.writerow([f"{system} ({track})", track, *row])
    return text.getvalue()
