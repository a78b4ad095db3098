"""What was measured, in words and as one HTML page that needs nothing else."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stages.core import model
from stages.core.records import Answer, Example, Kind
from stages.evaluate import charts
from stages.evaluate.metrics import RESERVED, Scores
from stages.evaluate.statistics import MIN_PAGES, MIN_QUESTIONS
from stages.evaluate.verdict import TRACK_MEANING, WITHOUT_TUNING

Row = Mapping[str, Any]
"""A comparison, an interval or the figures of a system, as it stands in the JSON files."""

TRACK_TITLE = {
    "same_fact": "Facts that were trained on",
    "held_out": "Pages that were never trained on",
    "gold": "Questions that people asked",
}

SYSTEMS = {
    "quote": ("plain quoting", "The best sentences that search finds, word for word; no model."),
    "base": ("the base model", "Before tuning, from memory."),
    "base_few_shot": (
        "the base model with examples",
        "Before tuning, with some questions and their answers in its prompt.",
    ),
    "base_rag": (
        "the base model with retrieval",
        "Before tuning, with passages that search found in its prompt.",
    ),
    "tuned": ("the tuned model", "After tuning, from memory."),
    "tuned_rag": (
        "the tuned model with retrieval",
        "After tuning, with passages that search found in its prompt.",
    ),
    "champion": ("the champion", "The best tuned model before this one, from memory."),
    "champion_rag": (
        "the champion with retrieval",
        "The best tuned model before this one, with passages that search found in its prompt.",
    ),
}
"""What Docent's systems are called in a sentence, and what they do; any other is a stranger's."""
STRANGER = ("", "A model or a file of answers from outside.")


class Column(NamedTuple):
    figure: str
    head: str
    form: str


QUALITY = (
    Column("rouge1_f1", "ROUGE-1", "{:.3f}"),
    Column("rouge2_f1", "ROUGE-2", "{:.3f}"),
    Column("rougeL_f1", "ROUGE-L", "{:.3f}"),
    Column("rougeLsum_f1", "ROUGE-Lsum", "{:.3f}"),
    Column("token_f1", "Token F1", "{:.3f}"),
    Column("exact_match", "Exact match", "{:.1%}"),
    Column("similarity", "Similarity", "{:.3f}"),
    Column("answer_words", "Words", "{:.1f}"),
    Column("num_questions", "Questions", "{:,.0f}"),
)
RETRIEVAL = (
    Column("recall_at_1", "Found first", "{:.1%}"),
    Column("recall_at_3", "Found in three", "{:.1%}"),
    Column("reciprocal_rank", "Reciprocal rank", "{:.3f}"),
    Column("citation_precision", "Citation precision", "{:.1%}"),
    Column("citation_recall", "Citation recall", "{:.1%}"),
)
ABSTENTION = (
    Column("abstention_f1", "Refusal F1", "{:.3f}"),
    Column("abstention_precision", "Refusal precision", "{:.1%}"),
    Column("abstention_recall", "Refusal recall", "{:.1%}"),
    Column("fabrication_rate", "Made-up answers", "{:.1%}"),
    Column("false_refusal_rate", "False refusals", "{:.1%}"),
)
PERPLEXITY = (Column("reference_perplexity", "Perplexity of the references", "{:,.2f}"),)
FORGETTING = (
    Column("perplexity", "Perplexity of general text", "{:,.2f}"),
    Column("bits_per_byte", "Bits per byte", "{:.3f}"),
)
SYSTEM_TIMES = (
    Column("p50_s", "Half within, s", "{:.2f}"),
    Column("p95_s", "95 % within, s", "{:.2f}"),
    Column("num_answers", "Answers", "{:,.0f}"),
    Column("tokens_per_answer", "Tokens per answer", "{:,.1f}"),
    Column("cost_usd_per_answer", "US$ per answer", "{:,.6f}"),
)
STAGE_TIMES = (
    Column("seconds", "Seconds", "{:,.1f}"),
    Column("cost_usd", "US$", "{:,.4f}"),
)

NUM_SHOWN = 10
"""Gains, and losses, that a pair of systems shows."""
LONGEST_TEXT = 1500
"""Characters of an answer that are shown."""

_LINK = re.compile(r"https?://[^\s/]\S*", re.IGNORECASE)
# Code points that HTML or UTF-8 has no place for.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


@dataclass(frozen=True)
class Findings:
    """All that a report tells."""

    judged: Mapping[str, Any]
    """verdict.json: see `verdict.judge`."""
    metrics: Mapping[str, Any]
    """metrics.json: see `metrics.summarize`."""
    examples: Sequence[Example]
    answers: Sequence[Answer]
    scores: Scores
    sources: Mapping[str, Sequence[str]]
    """Addresses of the evidence, by example id."""
    curve: Sequence[Mapping[str, float]]
    """Rows of the training curve: step, loss, learning_rate, eval_loss."""
    rejects: Mapping[str, Mapping[str, int]]
    """How many rows a stage left out, by stage and reason."""
    timings: Mapping[str, Any]
    """`systems`: p50_s, p95_s, num_answers, tokens_per_answer and cost_usd_per_answer by system;
    `stages`: seconds and cost_usd by stage. Nothing else in a report varies between equal runs."""


@dataclass(frozen=True)
class Claim:
    """A question that a reader comes with, and what the comparisons of one track answer."""

    question: str
    verdict: str
    look: str
    """A comparison's word, which colours the verdict."""
    sentence: str


@dataclass(frozen=True)
class Table:
    """Cells as text, the first of a row its head. The first column is of names."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """Strips above one axis."""

    caption: str
    rows: tuple[tuple[str, Markup, str, str], ...]
    """Label, strip, figures in words, and the comparison's word or nothing."""
    axis: Markup


@dataclass(frozen=True)
class Change:
    """How far the second system's answer to a question is above the first's."""

    example: Example
    difference: float
    before: str
    after: str
    links: tuple[tuple[str, bool], ...]
    """Texts, and whether each is an address to follow."""


@dataclass(frozen=True)
class Changes:
    before: str
    after: str
    num_questions: int
    gains: tuple[Change, ...]
    losses: tuple[Change, ...]


def describe(cfg: Any, endpoint: Mapping[str, Any]) -> str:
    """Which base model the systems stand on, in one sentence."""
    if endpoint["engine"] == "hosted":
        base, where = endpoint["models"]["base"]["id"], endpoint["settings"]["base_url"]
        return f"Base: {base} at {where}, where it was tuned too."
    match cfg:
        case model.Scratch():
            return (
                f"Base: a Llama from scratch ({cfg.num_layers} layers of width {cfg.hidden_size}), "
                "pretrained on the train pages only. It is a demonstration: on pages that it never "
                "saw it knows nothing, and no figure here says how a pretrained model would do."
            )
        case model.Hub():
            return f"Base: {cfg.id} of the hub, revision {cfg.revision}."
        case _:
            return f"Base: the local model folder {cfg.path}."


def render(found: Findings) -> str:
    """The report as HTML. Parts without a finding are left out, or say so in a sentence."""
    environment = Environment(
        loader=PackageLoader("stages.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "questions": _questions,
        "sentence": _sentence,
        "shorten": shorten,
        "signed": _signed,
        "titled": titled,
        "who": name,
    }
    systems = {who: found.metrics[who] for who in ordered(found.metrics) if who not in RESERVED}
    judged = found.judged
    tracks = _tracks(found)
    page = environment.get_template("report.html.j2").render(
        judged=judged,
        metric=_metric(judged),
        claims={track: headline(_compared(judged, track)) for track in tracks},
        tracks=tracks,
        titles=TRACK_TITLE,
        meanings=TRACK_MEANING,
        legend=[(who, SYSTEMS.get(who, STRANGER)[1]) for who in _named(systems, judged)],
        kinds=kinds(found.metrics.get("kinds", {})),
        min_questions=MIN_QUESTIONS,
        min_pages=MIN_PAGES,
        retrieval=table("Retrieval and citations", by_title(systems), RETRIEVAL),
        abstention=_abstention(systems, found),
        perplexity=table(
            "How likely the models find the references", by_title(systems), PERPLEXITY
        ),
        forgetting=_forgetting(judged.get("forgetting")),
        judge=_judge(judged.get("judge")),
        pairs=[
            _changes(found, before, after)
            for after, before in WITHOUT_TUNING.items()
            if {before, after} <= {answer.system for answer in found.answers}
        ],
        curve=_curve(found.curve),
        rejects=[_rejected(stage, reasons) for stage, reasons in found.rejects.items()],
        times=[
            table("Answers", by_title(found.timings.get("systems", {})), SYSTEM_TIMES),
            table("Stages", list(found.timings.get("stages", {}).items()), STAGE_TIMES, "Stage"),
        ],
    )
    return _FORBIDDEN.sub("\ufffd", page)


def headline(comparisons: Sequence[Row]) -> list[Claim]:
    """Did tuning help, is it better than retrieval, is a model better than plain quoting?

    A question whose systems were not compared is not in the list.
    """
    by_pair = {(row["first"], row["second"]): row for row in comparisons}
    claims = []
    tuning = [by_pair[pair] for pair in WITHOUT_TUNING.items() if pair in by_pair]
    if tuning:
        sentence = _sentence("; ".join(map(_told, tuning)))
        claims.append(Claim("Did tuning help?", *_gain({row["word"] for row in tuning}), sentence))
    if ("tuned", "base_rag") in by_pair:
        row = by_pair["tuned", "base_rag"]
        question = "Is tuning better than retrieval?"
        claims.append(Claim(question, *ANSWER[row["word"]], _sentence(_told(row))))
    quoting = [row for row in comparisons if row["second"] == "quote"]
    if quoting:
        claims.append(_beyond_quoting(quoting))
    return claims


ANSWER = {
    "better": ("Yes", "better"),
    "worse": ("No", "worse"),
    "not shown": ("Not shown", "not-shown"),
    "too few": ("Too few questions", "too-few"),
}
"""What a comparison's word answers to "is it better?", and how that looks."""


def _gain(words: set[str]) -> tuple[str, str]:
    """Did it help, by the words of one or two comparisons."""
    if words == {"better"}:
        return "Yes", "better"
    if "better" in words:
        return "In part", "not-shown"
    if "worse" in words:
        return "No gain", "worse"
    return ("No gain shown", "not-shown") if "not shown" in words else ANSWER["too few"]


def _beyond_quoting(rows: Sequence[Row]) -> Claim:
    """Of all systems against quoting: those that are better, else the one that comes nearest."""
    question = "Is any model better than plain quoting?"
    words = {row["word"] for row in rows}
    highest = sorted(rows, key=_difference, reverse=True)
    better = [row for row in highest if row["word"] == "better"]
    if better:
        told = "; ".join(map(_told, better[:3]))
        more = f"; and so are {len(better) - 3} more" if len(better) > 3 else ""
        return Claim(question, *ANSWER["better"], _sentence(told + more))
    word = next(word for word in ("not shown", "too few", "worse") if word in words)
    if len(rows) == 1:
        return Claim(question, *ANSWER[word], _sentence(_told(rows[0])))
    top = next(row for row in highest if row["word"] == word)
    said = {
        "worse": "every model is worse than plain quoting; nearest is",
        "not shown": "no model is shown to be better than plain quoting; highest is",
        "too few": "there are too few questions to compare with plain quoting; highest is",
    }[word]
    sentence = _sentence(f"{said} {name(top['first'])}: {gap(top)}")
    return Claim(question, *ANSWER[word], sentence)


def _told(row: Row) -> str:
    one, other = name(row["first"]), name(row["second"])
    match row["word"]:
        case "better" | "worse":
            said = f"{one} is {row['word']} than {other}"
        case "not shown":
            said = f"no difference between {one} and {other} is shown"
        case _:
            said = f"there are too few questions to compare {one} with {other}"
    return f"{said}: {gap(row)}"


def gap(row: Row) -> str:
    """A comparison's difference with its interval."""
    if row["difference"] is None:
        return "no question in common"
    if row["low"] is None or row["high"] is None:
        return f"{_signed(row['difference'])} (one page, no interval)"
    return f"{_signed(row['difference'])} [{_signed(row['low'])},\u00a0{_signed(row['high'])}]"


def name(system: str) -> str:
    """What a system is called in a sentence; a stranger's name stands in quotation marks."""
    return SYSTEMS[system][0] if system in SYSTEMS else f"“{system}”"


def titled(system: str) -> str:
    """A system's name as it begins a line."""
    return _sentence(SYSTEMS[system][0].removeprefix("the "), "") if system in SYSTEMS else system


def ordered(systems: Iterable[str]) -> list[str]:
    """Docent's own systems first, from the plainest on; then the others by name."""
    rank = {system: place for place, system in enumerate(SYSTEMS)}
    return sorted(systems, key=lambda system: (rank.get(system, len(rank)), system))


def table(
    caption: str, rows: Sequence[tuple[str, Row]], columns: Sequence[Column], head: str = "System"
) -> Table | None:
    """Rows of a title and figures; what has no figure at all is left out. None if all are."""
    shown = [c for c in columns if any(row.get(c.figure) is not None for _, row in rows)]
    cells = tuple(
        (title, *(figure(row.get(c.figure), c.form) for c in shown))
        for title, row in rows
        if any(row.get(c.figure) is not None for c in shown)
    )
    return Table(caption, (head, *(c.head for c in shown)), cells) if cells else None


def by_title(systems: Mapping[str, Row]) -> list[tuple[str, Row]]:
    return [(titled(who), systems[who]) for who in ordered(systems)]


def figure(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    return (
        "∞" if math.isinf(value) else form.format(value).replace("-", "−").replace("%", "\u00a0%")
    )


def intervals(spans: Mapping[str, Row]) -> Plot:
    """The mean of each system with its interval, from 0 to 1."""
    rows = []
    for who in ordered(spans):
        span = spans[who]
        known = span["low"] is not None and span["high"] is not None
        words = figure(span["mean"], "{:.3f}")
        if known:
            words += f" [{figure(span['low'], '{:.3f}')},\u00a0{figure(span['high'], '{:.3f}')}]"
        title = f"{name(who)}: {words}"
        drawn = charts.strip(charts.UNIT, span["mean"], span["low"], span["high"], "mean", title)
        rows.append((titled(who), drawn, words, ""))
    caption = "Mean score with its 95 % interval"
    return Plot(caption, tuple(rows), charts.axis(charts.UNIT))


def forest(comparisons: Sequence[Row], caption: str) -> Plot:
    """Each comparison's difference with its interval around zero."""
    ends = [row[end] for row in comparisons for end in ("low", "difference", "high")]
    scale = charts.around_zero(end for end in ends if end is not None)
    rows = []
    for row in comparisons:
        one, other = titled(row["first"]), name(row["second"])
        look = ANSWER[row["word"]][1]
        title = f"{one} against {other}: {row['word']}, {gap(row)}"
        drawn = charts.strip(scale, row["difference"], row["low"], row["high"], look, title)
        rows.append((f"{one} against {other}", drawn, gap(row), row["word"]))
    return Plot(caption, tuple(rows), charts.axis(scale))


def kinds(by_kind: Mapping[str, Mapping[str, Row]]) -> list[dict[str, Any]]:
    """A group of bars of ROUGE-L F1 for each kind of question."""
    rank = {kind: place for place, kind in enumerate(get_args(Kind))}
    groups = []
    for kind in sorted(by_kind, key=lambda kind: (rank.get(kind, len(rank)), kind)):
        systems = by_kind[kind]
        asked = max((row["num_questions"] for row in systems.values()), default=0)
        bars = []
        for who in ordered(systems):
            row = systems[who]
            words = figure(row["rougeL_f1"], "{:.2f}")
            title = f"{kind}, {name(who)}: {words} over {_questions(row['num_questions'])}"
            fewer = "" if row["num_questions"] == asked else f" (of {row['num_questions']})"
            bars.append((titled(who) + fewer, charts.bar(row["rougeL_f1"], title), words))
        groups.append({"kind": kind, "num_questions": asked, "bars": bars})
    return groups


def shorten(text: str) -> str:
    """The text up to a length that a page bears, and how much more there was."""
    more = len(text) - LONGEST_TEXT
    return f"{text[:LONGEST_TEXT]} … ({more:,} more characters)" if more > 0 else text


def _metric(judged: Row) -> str:
    metric = judged.get("metric", "rougeL_f1")
    return next((f"{c.head} F1" for c in QUALITY[:4] if c.figure == metric), metric)


def _compared(judged: Row, track: str) -> Sequence[Row]:
    found: Sequence[Row] = judged.get("tracks", {}).get(track, {}).get("comparisons", ())
    return found


def _tracks(found: Findings) -> dict[str, dict[str, Any]]:
    """Table, plots and sentences of each track that has any."""
    by_track = found.metrics.get("tracks", {})
    judged = found.judged.get("tracks", {})
    tracks = {}
    for track in [track for track in TRACK_MEANING if track in {*by_track, *judged}]:
        comparisons = _compared(found.judged, track)
        spans = judged.get(track, {}).get("intervals", {})
        figures = by_track.get(track, {})
        tracks[track] = {
            "num_questions": max(
                (row["num_questions"] for row in [*figures.values(), *spans.values()]), default=0
            ),
            "table": table("Mean scores", by_title(figures), QUALITY),
            "intervals": intervals(spans) if spans else None,
            "forest": forest(comparisons, "Differences with their 95 % intervals")
            if comparisons
            else None,
            "sentences": [row["sentence"] for row in comparisons],
        }
    return tracks


def _named(systems: Mapping[str, Row], judged: Row) -> list[str]:
    """Every system that the report names."""
    spans = [set(track.get("intervals", ())) for track in judged.get("tracks", {}).values()]
    return ordered({*systems}.union(*spans))


def _abstention(systems: Mapping[str, Row], found: Findings) -> Table | None:
    """Of the systems and of refusing always and never; None if every question has an answer."""
    if all(example.kind != "unanswerable" for example in found.examples):
        return None
    baselines = found.metrics.get("baselines", {})
    named = {"always_refuse": "Always refusing", "always_answer": "Always answering"}
    rows = [(title, baselines[key]) for key, title in named.items() if key in baselines]
    return table("Refusals", [*by_title(systems), *rows], ABSTENTION)


def _forgetting(found: Row | None) -> dict[str, Any] | None:
    if not found:
        return None
    models = {who: found[who] for who in ("base", "tuned") if found.get(who)}
    return {
        "table": table("General text, before and after tuning", by_title(models), FORGETTING),
        "sentence": found.get("sentence", ""),
    }


def _judge(found: Row | None) -> dict[str, Any] | None:
    if not found:
        return None
    said = f"Judged by {found.get('model', 'a model')}."
    if found.get("consistency") is not None:
        said += (
            f" It said the same with the two answers in the other order "
            f"{figure(found['consistency'], '{:.0%}')} of the time."
        )
    people = found.get("calibration")
    if people:
        agreed = figure(people["agreement"], "{:.0%}")
        said += f" On {people['num']} judgements by people it agreed in {agreed}"
        if people.get("kappa") is not None:
            kappa = figure(people["kappa"], "{:.2f}")
            said += f" (Cohen’s kappa {kappa}; 0 is chance, 1 is full agreement)"
        said += "."
    else:
        said += " It was not compared with people: do not rest a decision on it alone."
    criteria = found.get("criteria", {})
    return {
        "sentence": said,
        "criteria": [
            (forest(rows, criterion), [row["sentence"] for row in rows])
            for criterion in sorted(criteria)
            if (rows := criteria[criterion].get("comparisons"))
        ],
    }


def _changes(found: Findings, before: str, after: str) -> Changes:
    """The questions on which two systems differ most, where both answered."""
    said = {(answer.system, answer.example_id): answer.answer for answer in found.answers}
    rows = []
    for example in found.examples:
        was, now = (before, example.id), (after, example.id)
        if {was, now} <= said.keys() and {was, now} <= found.scores.keys():
            difference = found.scores[now]["rougeL_f1"] - found.scores[was]["rougeL_f1"]
            links = tuple(
                (url, bool(_LINK.fullmatch(url)))
                for url in dict.fromkeys(found.sources.get(example.id, ()))
            )
            rows.append(Change(example, difference, said[was], said[now], links))
    rows.sort(key=lambda row: (-row.difference, row.example.id))
    gains = [row for row in rows if row.difference > 0]
    losses = [row for row in reversed(rows) if row.difference < 0]
    return Changes(before, after, len(rows), tuple(gains[:NUM_SHOWN]), tuple(losses[:NUM_SHOWN]))


def _curve(rows: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """The losses by step as lines, and where they came from and ended, in words."""
    names = {
        "loss": "Loss on the training examples",
        "eval_loss": "Loss on the validation examples",
    }
    series = {
        title: [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
        for key, title in names.items()
    }
    series = {title: points for title, points in series.items() if points}
    if not series:
        return None
    told = []
    for title, points in series.items():
        lowest = min(points, key=lambda point: point[1])
        told.append(
            f"{title}: from {points[0][1]:.3g} at step {points[0][0]:g} to {points[-1][1]:.3g} at "
            f"step {points[-1][0]:g}; lowest {lowest[1]:.3g} at step {lowest[0]:g}."
        )
    return {"names": list(series), "told": told, "drawn": charts.lines(series, " ".join(told))}


def _rejected(stage: str, reasons: Mapping[str, int]) -> tuple[str, int, Table | None]:
    rows = sorted(reasons.items(), key=lambda row: (-row[1], row[0]))
    shown = tuple((reason, f"{count:,}") for reason, count in rows)
    return stage, sum(reasons.values()), Table(stage, ("Reason", "Rows"), shown) if rows else None


def _sentence(text: str, end: str = ".") -> str:
    return text[:1].upper() + text[1:] + end


def _questions(count: int) -> str:
    return f"{count:,} question{'' if count == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _difference(row: Row) -> float:
    return -math.inf if row["difference"] is None else float(row["difference"])
