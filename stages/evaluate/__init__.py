"""Questions × systems → answers, metrics, a verdict with intervals, and a report that tells it."""

import csv
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, quantiles
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages import answer as answering
from stages import llm
from stages.answer import endpoint as serving
from stages.answer.retrieval import Index
from stages.core import config, model, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, Example, Record, Reject, System, Track, identify
from stages.evaluate import asking, judge, metrics, neural, report, rouge, verdict
from stages.evaluate import gold as gold_sets
from stages.evaluate.asking import Asked, Material, Respondent, Source

__all__ = ["Config", "run"]


class External(llm.OpenAI):
    """A model of someone else that answers the same questions, under its own name."""

    retrieval: bool
    """Whether it is also asked with retrieved chunks, as a second system NAME_rag."""


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
    """Interpreter of the model environment, which computes perplexity and similarity."""
    perplexity: bool
    """Whether to measure how likely base and tuned find the references, and a general text."""
    similarity: bool
    """Whether to compare the meaning of answer and reference by sentence embeddings."""
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
        taken = {*metrics.RESERVED, *verdict.CHAMPION.values()}
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
    for name, external in cfg.endpoints.items():
        llm.api_key(external, f"evaluate.endpoints.{name}")
    if cfg.judge:
        llm.api_key(cfg.judge, "evaluate.judge")
    opened = Index.open(index)
    asked_by_people = gold_sets.read(gold, cfg.gold, opened.chunks) if gold else gold_sets.Gold()
    if asked_by_people.unknown_urls:
        progress.note(
            f"{gold}: {len(asked_by_people.unknown_urls)} addresses are not in the index, so that "
            f"they count for no retrieval; the first: {asked_by_people.unknown_urls[0]}"
        )
    examples = [*(store.read(test, Example) if test else ()), *asked_by_people.examples]
    _check_questions(examples, test, gold)
    shots = asking.shots(
        list(store.read(validation, Example)) if validation else [],
        cfg.num_shots,
        answer.context_tokens,
        cfg.seed,
    )
    manifest = store.read_json(endpoint) if endpoint else None
    respondents, sources = _respondents(cfg, endpoint, manifest, champion, bool(shots))
    material = Material(opened, store.digest(index), answer, shots)
    answers, unanswered = asking.ask_all(respondents, examples, material, sources)
    num_asked = len(respondents) * len(examples)
    if len(unanswered) > cfg.max_reject_rate * num_asked:
        raise PipelineError(
            f"evaluate: {len(unanswered)} of {num_asked} questions went unanswered "
            f"(evaluate.max_reject_rate {cfg.max_reject_rate}); the first: {unanswered[0].detail}"
        )
    rows = [*(asked.answer for asked in answers), *asked_by_people.recorded]
    store.write(out / "answers.jsonl", rows)
    store.write(out / "rejects.jsonl", unanswered)

    pairs = [(row.answer, row.reference) for row in rows]
    measured = neural.measure(
        cfg.python,
        _models(endpoint, manifest) if cfg.perplexity and endpoint and manifest else {},
        getattr(model, "chat_template", None),
        examples,
        pairs if cfg.similarity else [],
    )
    ways: dict[str, System | None] = {who.name: who.way for who in respondents}
    ways |= dict.fromkeys(cfg.gold.recorded if asked_by_people.recorded else ())
    scoring = metrics.Scoring(
        rouge.Scorer(cfg.stemming), {chunk.id: chunk for chunk in opened.chunks}, cfg.refusals
    )
    by_id = {example.id: example for example in examples}
    scores = {
        (row.system, row.example_id): metrics.score(
            row, by_id[row.example_id], ways[row.system], scoring
        )
        for row in rows
    }
    if cfg.similarity:
        for row, similarity in zip(rows, measured.similarities, strict=True):
            scores[row.system, row.example_id]["similarity"] = similarity
    store.write(
        out / "scores.jsonl",
        (
            Score(
                example_id=id,
                system=system,
                track=by_id[id].track,
                page=verdict.page(by_id[id]),
                figures=figures,
            )
            for (system, id), figures in scores.items()
        ),
    )
    systems = list(ways)
    summary = metrics.summarize(systems, examples, scores, measured.references)
    store.write_json(out / "metrics.json", summary)
    store.write_text(out / "rouge.csv", _table(summary))
    by_track = {
        track: {system: figures[verdict.METRIC] for system, figures in of_track.items()}
        for track, of_track in summary["tracks"].items()
    }
    store.write_json(out / "rouge.json", by_track)  # `dvc metrics` prints a column per figure

    judged = verdict.judge(systems, examples, scores, verdict.METRIC, cfg.seed, cfg.resamples)
    judged["base"] = report.describe(model) if manifest else "No model of ours was asked."
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
        "systems": _spent(cfg, answers),
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
    return {
        f"{track}.{system}.{name}": figures[name]
        for track, of_track in summary["tracks"].items()
        for system, figures in of_track.items()
        for name in FIGURES
        if name in figures
    } | {"num_questions": len(examples), "num_answers": len(rows)}


FIGURES = (
    *(f"{name}_f1" for name in rouge.NAMES),
    *("token_f1", "exact_match", "similarity", "citation_precision", "citation_recall"),
    *("recall_at_1", "recall_at_3", "reciprocal_rank", "reference_perplexity"),
    *("abstention_f1", "fabrication_rate", "false_refusal_rate"),
)
"""What of metrics.json MLflow's runs and the manifest show, by track and system."""


MOST_SOURCES = 3
"""Addresses that the report gives for one question; a page has as many as sections."""


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


def _respondents(
    cfg: Config,
    endpoint: Path | None,
    manifest: Mapping[str, Any] | None,
    champion: Path | None,
    has_shots: bool,
) -> tuple[list[Respondent], dict[str, Source]]:
    """Who is asked, in the order of the results, and where they answer."""
    respondents = []
    sources = {}
    models = (
        {name: serving.identity(manifest, name) for name in manifest["models"]} if manifest else {}
    )
    for system in cfg.systems:
        if system == "base_few_shot" and not has_shots:
            progress.note("base_few_shot is left out: there is no validation example to show it")
        elif system == "quote":
            respondents.append(Respondent("quote", "quote", None, ""))
        elif not endpoint:
            raise PipelineError(
                f"evaluate.systems: {system!r} is a model of ours, and no --endpoint says where "
                "it is: give one (data/deploy/endpoint.json), or leave it out"
            )
        else:
            name = "base" if system.startswith("base") else "tuned"
            respondents.append(Respondent(system, system, "ours", models[name]))
            sources["ours"] = Source(partial(serving.start, endpoint), cfg.concurrency)
    if champion and endpoint and manifest:
        about = store.read_json(champion / "champion.json")
        rival = serving.with_tuned(manifest, champion / "model", about["digest"])
        if rival is None:
            progress.note("the champion is not asked: that takes deploy=embedded")
        else:
            place = store.workspace("champion", "endpoint.json")
            store.write_json(place, rival)
            sources["champion"] = Source(partial(serving.start, place), cfg.concurrency)
            of_model = serving.identity(rival, "tuned")
            respondents += [
                Respondent(verdict.CHAMPION[system], system, "champion", of_model)
                for system in ("tuned", "tuned_rag")
                if system in cfg.systems
            ]
    for name, external in cfg.endpoints.items():
        said = external.model_dump(exclude={"api_key_env", "concurrency", "retrieval"})
        settings = identify(said)
        sources[name] = asking.hosted(name, external)
        respondents.append(Respondent(name, "base", name, settings))
        if external.retrieval:
            respondents.append(Respondent(f"{name}_rag", "base_rag", name, settings))
    return respondents, sources


def _models(endpoint: Path, manifest: Mapping[str, Any]) -> dict[str, neural.Model]:
    """The models of the endpoint, where their weights are."""
    places = serving.located(endpoint, manifest)
    return {
        name: neural.Model(path=places[name], digest=said["digest"])
        for name, said in manifest["models"].items()
    }


def _spent(cfg: Config, answers: Sequence[Asked]) -> dict[str, Any]:
    """By system: seconds (median and 95th percentile), tokens and US dollars of an answer."""
    by_system: dict[str, list[Asked]] = {}
    for asked in answers:
        by_system.setdefault(asked.answer.system, []).append(asked)
    found = {}
    for system, rows in by_system.items():
        seconds = [row.seconds for row in rows if row.seconds is not None]
        # Requests share the machine: each pays for its share of the time.
        machine = sum(seconds) / cfg.concurrency / 3600 * cfg.machine_usd_per_hour
        ours = system in (*verdict.CHAMPION, *verdict.CHAMPION.values(), *cfg.systems)
        cost = sum(row.cost_usd for row in rows) + (machine if ours and system != "quote" else 0)
        cuts = quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else seconds * 19
        found[system] = {
            **({"p50_s": round(cuts[9], 4), "p95_s": round(cuts[18], 4)} if seconds else {}),
            "num_answers": len(rows),
            "tokens_per_answer": round(fmean(row.answer.tokens for row in rows), 2),
            "cost_usd_per_answer": round(cost / len(rows), 8),
        }
    return found


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
            next(
                (c.url for c in chunks.get(span.document_id, ()) if metrics.overlaps(c, [span])), ""
            )
            for span in example.evidence
        ]
        found[example.id] = tuple(dict.fromkeys(filter(None, urls)))
    return found


def _curve(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _rejects(paths: Sequence[Path]) -> dict[str, dict[str, int]]:
    """By stage, how many rows were left out for which reason."""
    found = {}
    for path in paths:
        counts = Counter(row.reason for row in store.read(path, Reject))
        found[path.parent.name] = dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))
    return found


def _table(summary: Mapping[str, Any]) -> str:
    """The scores as CSV, a row per track and system: what `dvc plots` draws."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "track", *(f"{name}_f1" for name in rouge.NAMES)])
    for track, systems in summary["tracks"].items():
        for system, figures in systems.items():
            row = [f"{figures[f'{name}_f1']:.6f}" for name in rouge.NAMES]
            writer.writerow([f"{track}: {system}", track, *row])
    return text.getvalue()
