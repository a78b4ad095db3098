"""Questions × systems → answers, metrics, a verdict with intervals, and a report that tells it."""

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages import answer as answering
from stages import llm
from stages.answer import embedding
from stages.answer import endpoint as serving
from stages.answer.retrieval import Index
from stages.core import config, model, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Answer, Chunk, Example, Record, Reject, System, Track
from stages.evaluate import asking, judge, metrics, neural, report, rouge, verdict
from stages.evaluate import gold as gold_sets
from stages.evaluate.asking import Material, Source
from stages.evaluate.systems import External, Systems, served_models

__all__ = ["Config", "run"]


class Config(config.Base):
    systems: tuple[System, ...]
    """Who answers: any of quote, base, base_few_shot, base_rag, tuned, tuned_rag."""
    num_shots: Annotated[int, Field(gt=0)]
    """Most validation questions with their answers that base_few_shot is shown first."""
    endpoints: dict[str, External]
    """Further models by name, such as a hosted one; empty for none."""
    concurrency: Annotated[int, Field(gt=0)]
    """Questions that our own server is asked at the same time."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of questions that may go unanswered before the stage fails."""
    machine_usd_per_hour: Annotated[float, Field(ge=0)]
    """Price of the machine that our own server runs on, for the cost of an answer."""
    stemming: bool
    """Whether ROUGE compares stems instead of words."""
    refusals: tuple[str, ...]
    """Beginnings of an answer that say that there is none, beside Docent's own sentence."""
    python: str
    """Interpreter of the model environment, which computes perplexity."""
    perplexity: bool
    """Whether to measure how likely base and tuned find the references, and a general text."""
    gold: gold_sets.Config
    """Which column is which in the files of people's questions and answers."""
    judge: judge.Config | None
    """A language model that compares answers two by two; null for none."""
    gate: verdict.Gate | None
    """What a model must show to become the registry's champion; null lets none."""
    resamples: Annotated[int, Field(ge=1000)]
    """Resamples of the pages, and permutations, that intervals and p-values rest on."""
    seed: int
    """Seed of the resampling, and of the choice of the examples that base_few_shot is shown."""

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        names = [*self.systems, *self.gold.recorded, *self.endpoints]
        names += [f"{name}_rag" for name, of in self.endpoints.items() if of.retrieval]
        taken = {*metrics.RESERVED, *verdict.CHAMPION.values(), "ours"}
        for name in names:
            if names.count(name) > 1 or name in taken:
                raise PydanticCustomError(
                    "names", "two systems cannot have the name {name}", {"name": name}
                )
        if not names:
            raise PydanticCustomError("names", "expected at least one system")
        return self


class Score(Record):
    """The figures of one answer."""

    example_id: str
    system: str
    track: Track | None
    page: str
    figures: dict[str, float]


def run(
    cfg: Config,
    answer: answering.Config,
    model: model.Config,
    embedder: embedding.Config,
    index: Path,
    out: Path,
    test: Path | None = None,
    validation: Path | None = None,
    gold: Path | None = None,
    endpoint: Path | None = None,
    weights: Path | None = None,
    champion: Path | None = None,
    labels: Path | None = None,
    rejects: tuple[Path, ...] = (),
) -> dict[str, float]:
    """Ask every system every question of `test` and `gold`, score, compare, report.

    `endpoint` describes the server of base and tuned, which `weights` holds with their training
    curve; `champion` holds the model to beat; `validation` are the examples that base_few_shot is
    shown; `labels` are people's judgements that the judge is measured by; `rejects` are what the
    stages before left out, for the report.
    """
    began = time.monotonic()
    _check_keys(cfg)
    with Index.open(index, answer.search) as opened:
        by_people = _read_gold(cfg, gold, opened)
        examples = [*(store.read(test, Example) if test else ()), *by_people.examples]
        _check_questions(examples, test, gold)
        shown = list(store.read(validation, Example)) if validation else []
        shots = asking.shots(shown, cfg.num_shots, answer.context_tokens, cfg.seed)
        asked = _systems(cfg, endpoint, champion, has_shots=bool(shots))
        material = Material(opened, store.digest(index), answer, shots)
        answers, unanswered = asking.ask_all(asked.respondents, examples, material, asked.sources)
    _check_rejects(cfg, unanswered, len(asked.respondents) * len(examples))
    rows = [*(each.answer for each in answers), *by_people.recorded]
    store.write(out / "answers.jsonl", rows)
    store.write(out / "rejects.jsonl", unanswered)

    ways = asked.ways | dict.fromkeys(cfg.gold.recorded if by_people.recorded else ())
    measured = neural.measure(
        cfg.python,
        served_models(endpoint) if cfg.perplexity and endpoint else {},
        getattr(model, "template", None),
        examples,
    )
    scores = _score(cfg, rows, examples, ways, opened)
    with embedding.open(embedder) as model_of_meaning:
        if model_of_meaning:
            pairs = [(row.answer, row.reference) for row in rows]
            for row, alike in zip(rows, metrics.similarities(model_of_meaning, pairs), strict=True):
                scores[row.system, row.example_id]["similarity"] = alike
    store.write(out / "scores.jsonl", _score_rows(scores, examples))
    summary = metrics.summarize(list(ways), examples, scores, measured.references)
    store.write_json(out / "metrics.json", summary)
    _write_for_dvc(summary, out)

    judged = verdict.judge(list(ways), examples, scores, verdict.METRIC, cfg.seed, cfg.resamples)
    judged["base"] = "No model of ours was asked."
    if endpoint:
        judged["base"] = report.describe(model, store.read_json(endpoint))
    if measured.general:
        judged["forgetting"] = verdict.forgetting(measured.general)
    if champion:
        judged["champion"] = verdict.champion(store.read_json(champion / "champion.json"), ways)
    if cfg.gate and {cfg.gate.system, verdict.WITHOUT_TUNING[cfg.gate.system]} <= ways.keys():
        judged["gate"] = verdict.gate(cfg.gate, examples, scores, cfg.seed, cfg.resamples)
    if cfg.judge:
        judged["judge"] = judge.compare(cfg.judge, examples, rows, labels, cfg.seed, cfg.resamples)
    store.write_json(out / "verdict.json", judged)
    timings = {
        "total_s": round(time.monotonic() - began, 1),
        "systems": asking.spent(answers, asked.respondents, asked.sources),
        "stages": _stages_spent(),
    }
    store.write_json(out / "timings.json", timings)
    found = report.Findings(
        judged=judged,
        metrics=summary,
        examples=examples,
        answers=rows,
        scores=scores,
        sources=_sources(examples, opened),
        curve=_curve(weights / "curve.csv") if weights else (),
        rejects=_rejects(rejects),
        timings=timings,
    )
    store.write_text(out / "report.html", report.render(found))
    return _figures(summary) | {"num_questions": len(examples), "num_answers": len(rows)}


FIGURES = (
    *(f"{name}_f1" for name in rouge.NAMES),
    *("token_f1", "exact_match", "similarity", "citation_precision", "citation_recall"),
    *("recall_at_1", "recall_at_3", "reciprocal_rank", "reference_perplexity"),
    *("abstention_f1", "fabrication_rate", "false_refusal_rate"),
)
"""What of metrics.json MLflow's runs and the manifest show, by track and system."""

MOST_SOURCES = 3
"""Addresses that the report gives for one question; a page has as many as sections."""


# --- what comes in -----------------------------------------------------------------------------


def _check_keys(cfg: Config) -> None:
    """Every API key is there, before anything is asked."""
    for name, external in cfg.endpoints.items():
        llm.api_key(external, f"evaluate.endpoints.{name}")
    if cfg.judge:
        llm.api_key(cfg.judge, "evaluate.judge")


def _read_gold(cfg: Config, path: Path | None, index: Index) -> gold_sets.Gold:
    if path is None:
        return gold_sets.Gold()
    found = gold_sets.read(path, cfg.gold, index.chunks)
    if unknown := found.unknown_urls:
        progress.note(
            f"{path}: {len(unknown)} addresses are not in the index, so that they count for no "
            f"retrieval; the first: {unknown[0]}"
        )
    return found


def _systems(
    cfg: Config, endpoint: Path | None, champion: Path | None, *, has_shots: bool
) -> Systems:
    # Without an endpoint nothing is asked of the server, and so it is never started.
    start = partial(serving.start, endpoint or Path())
    server = Source(start, cfg.concurrency, cfg.machine_usd_per_hour)
    asked = Systems()
    asked.add_ours(cfg.systems, endpoint, server, has_shots)
    if champion and endpoint:
        asked.add_champion(cfg.systems, endpoint, champion, server)
    for name, external in cfg.endpoints.items():
        asked.add_external(name, external)
    return asked


def _check_questions(examples: Sequence[Example], test: Path | None, gold: Path | None) -> None:
    if not examples:
        raise PipelineError(
            f"{test or gold or 'evaluate'}: no test questions; raise synthesize.num_same_fact or "
            "the shares of the partitions, crawl more pages, or put people's questions and answers "
            "into data/inputs/gold"
        )
    for id, count in Counter(example.id for example in examples).items():
        if count > 1:
            raise PipelineError(f"{test}, {gold}: the id {id!r} stands {count} times: expected one")


def _check_rejects(cfg: Config, unanswered: Sequence[Reject], num_asked: int) -> None:
    if len(unanswered) > cfg.max_reject_rate * num_asked:
        raise PipelineError(
            f"evaluate: {len(unanswered)} of {num_asked} questions went unanswered "
            f"(evaluate.max_reject_rate {cfg.max_reject_rate}); the first: {unanswered[0].detail}"
        )


# --- what goes out -----------------------------------------------------------------------------


def _score(
    cfg: Config,
    rows: Sequence[Answer],
    examples: Sequence[Example],
    ways: Mapping[str, System | None],
    index: Index,
) -> dict[tuple[str, str], metrics.Figures]:
    """The figures of every answer by system and example."""
    chunks = {chunk.id: chunk for chunk in index.chunks}
    scoring = metrics.Scoring(rouge.Scorer(cfg.stemming), chunks, cfg.refusals)
    by_id = {example.id: example for example in examples}
    return {
        (row.system, row.example_id): metrics.score(
            row, by_id[row.example_id], ways[row.system], scoring
        )
        for row in rows
    }


def _score_rows(scores: metrics.Scores, examples: Sequence[Example]) -> Iterator[Score]:
    by_id = {example.id: example for example in examples}
    for (system, id), figures in scores.items():
        example = by_id[id]
        yield Score(
            example_id=id,
            system=system,
            track=example.track,
            page=verdict.page(example),
            figures=figures,
        )


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{track}.{system}.{name}": float(figures[name])
        for track, of_track in summary["tracks"].items()
        for system, figures in of_track.items()
        for name in FIGURES
        if name in figures
    }


def _stages_spent() -> dict[str, dict[str, float]]:
    """What the stages before took when they last ran in this workspace."""
    return {
        stage: {"seconds": round(row.seconds, 1), "cost_usd": row.cost_usd}
        for stage in ("crawl", "split", "index", "synthesize", "finetune", "deploy")
        if (row := progress.spent(stage))
    }


def _sources(examples: Sequence[Example], index: Index) -> dict[str, tuple[str, ...]]:
    """The addresses of each question's evidence."""
    chunks: dict[str, list[Chunk]] = {}
    for chunk in index.chunks:
        chunks.setdefault(chunk.document_id, []).append(chunk)
    found = {}
    for example in examples:
        urls = [
            metrics.address(span, chunks.get(span.document_id, ())) for span in example.evidence
        ]
        found[example.id] = tuple(dict.fromkeys(filter(None, urls)))
    return found


def _curve(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    return [{k: float(v) for k, v in row.items() if v and k != "phase"} for row in rows]


def _rejects(paths: Sequence[Path]) -> dict[str, dict[str, int]]:
    """By stage, how many rows were left out for which reason."""
    found = {}
    for path in paths:
        counts = Counter(row.reason for row in store.read(path, Reject))
        found[path.parent.name] = dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))
    return found


def _write_for_dvc(summary: Mapping[str, Any], out: Path) -> None:
    """rouge.json for `dvc metrics`, a column per figure; rouge.csv for `dvc plots`, a row each."""
    by_track = {
        track: {system: figures[verdict.METRIC] for system, figures in of_track.items()}
        for track, of_track in summary["tracks"].items()
    }
    store.write_json(out / "rouge.json", by_track)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "track", *(f"{name}_f1" for name in rouge.NAMES)])
    for track, of_track in summary["tracks"].items():
        for system, figures in of_track.items():
            row = [f"{figures[f'{name}_f1']:.6f}" for name in rouge.NAMES]
            writer.writerow([f"{track}: {system}", track, *row])
    store.write_text(out / "rouge.csv", text.getvalue())
