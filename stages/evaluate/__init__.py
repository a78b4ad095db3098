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
from stages.core.records import Answer, Example, Reject, System, identify
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
    kept = _kept_file(answer, test, index, endpoint)
    answers, rejects, seconds = _ask_all(cfg, answer, examples, opened, endpoint, kept)
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
    by_track = {
        track: {system: figures[METRIC] for system, figures in systems.items()}
        for track, systems in summary["tracks"].items()
    }
    store.write_json(out / "rouge.json", by_track)  # `dvc metrics` prints a column per figure
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
    cfg: Config,
    asking: answering.Config,
    examples: Sequence[Example],
    index: Index,
    manifest: Path,
    kept: Path,
) -> tuple[list[Answer], list[Reject], dict[str, float]]:
    """Answers ordered by system and example, what went unanswered, and mean seconds by system.

    What was answered before a kill stands in `kept` and is not asked again.
    """
    answers = {(row.system, row.example_id): row for row in _read_kept(kept)}
    asked = [(system, example) for system in cfg.systems for example in examples]
    missing = [pair for pair in asked if (pair[0], pair[1].id) not in answers]
    rejects: list[Reject] = []
    seconds: dict[str, list[float]] = {system: [] for system in cfg.systems}
    if not missing:
        progress.note("every question was answered before: nothing is asked")
        return [answers[system, e.id] for system, e in asked], [], {}
    with (
        serving.start(manifest) as server,
        ThreadPoolExecutor(cfg.concurrency) as pool,
        kept.open("a", encoding="utf-8") as file,
    ):

        def ask(pair: tuple[System, Example]) -> tuple[Answer | Reject, float]:
            began = time.monotonic()
            return _ask(*pair, index, server, asking), time.monotonic() - began

        for (system, example), (row, took) in zip(missing, pool.map(ask, missing), strict=True):
            seconds[system].append(took)
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                answers[system, example.id] = row
                file.write(row.model_dump_json() + "\n")
                file.flush()
            progress.step(len(answers) + len(rejects), len(asked), f"answers ({system})")
    ordered = [answers[system, e.id] for system, e in asked if (system, e.id) in answers]
    assert len(ordered) + len(rejects) == len(asked)
    return ordered, rejects, {s: sum(took) / len(took) for s, took in seconds.items() if took}


def _kept_file(asking: answering.Config, *inputs: Path) -> Path:
    """Where the answers to these questions by these models are kept: by all that shapes them."""
    code = sorted([*Path(answering.__file__).parent.glob("*.py"), Path(__file__)])
    key = identify(asking.model_dump(), *map(store.digest, [*inputs, *code]))
    return store.cache("answers", f"{key}.jsonl")


def _read_kept(path: Path) -> list[Answer]:
    """The answers in the file; what a kill left half-written is asked again."""
    if not path.exists():
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        store.write_text(path, whole + "\n" if whole else "")
    return list(store.read(path, Answer))


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
            writer.writerow([f"{track}: {system}", track, *row])
    return text.getvalue()
