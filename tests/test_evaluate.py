"""Evaluate: who is asked what and once, figures, the verdict in words, the gate, bad input.

Quoting, hosted models (a real server on loopback) and recorded answers run here; the models of
ours in test_pipeline.py.
"""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import chat
import pytest

from stages import answer as answering
from stages import evaluate, index, pipeline
from stages.answer.embedding import NoEmbedder
from stages.answer.retrieval import LEXICAL
from stages.answer.vectors import Flat
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Answer, Chunk, Citation, Evidence, Example, Message
from stages.evaluate import asking, gold, metrics, rouge, verdict
from stages.evaluate.neural import Likelihood

ROOT = Path(__file__).resolve().parent.parent


def example(number, track="same_fact", page=None, answer="the answer is blue"):
    question = f"question {number} <b>?"
    evidence = Evidence(document_id=page or f"page{number % 12}", start=0, end=4, text="blue")
    return Example(
        id=f"{track}{number}",
        kind="factual",
        track=track,
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ),
        question=question,
        answer=answer,
        chunk_ids=("c",),
        evidence=(evidence,),
        call_id="call",
    )


def scored(examples, says):
    """Scores of what each system says: a text, or a function of the example."""
    scorer = rouge.Scorer(stemming=False)
    return {
        (system, e.id): {
            **scorer.score(text(e) if callable(text) else text, e.answer),
            "refused": 0.0,
        }
        for system, text in says.items()
        for e in examples
    }


def test_means_are_by_system_over_all_and_by_track():
    examples = [example(1), example(2), example(3, "held_out")]
    scores = scored(
        examples,
        {
            "tuned": lambda e: e.answer if e.track == "same_fact" else "nothing",
            "base": "nothing",
        },
    )
    summary = metrics.summarize(("base", "tuned"), examples, scores, {})
    assert summary["tuned"]["rougeL_f1"] == pytest.approx(2 / 3)
    assert summary["tracks"]["same_fact"]["tuned"]["rougeL_f1"] == 1
    assert summary["tracks"]["held_out"]["tuned"]["rougeL_f1"] == 0
    assert summary["tracks"]["held_out"]["base"]["num_questions"] == 1


def test_a_system_that_answered_nothing_is_left_out():
    examples = [example(1)]
    scores = scored(examples, {"base": "x"})
    assert set(metrics.summarize(("base", "tuned"), examples, scores, {})) == {
        "base",
        "tracks",
        "kinds",
    }


def answer(text, system="tuned", citations=(), chunk_ids=()):
    return Answer(
        example_id="e",
        system=system,
        question="q",
        answer=text,
        reference="The answer is blue.",
        chunk_ids=chunk_ids,
        citations=citations,
        tokens=3,
    )


def cited(start, end, document_id="page1"):
    return Citation(document_id=document_id, url="u", start=start, end=end)


def chunk(id, start, end, document_id="page1"):
    return Chunk(
        id=id,
        document_id=document_id,
        start=start,
        end=end,
        heading_path=(),
        url="u",
        text="x" * (end - start),
        num_tokens=1,
    )


def figures(row, chunks=(), of=None, way="same"):
    by_id = {each.id: each for each in chunks}
    scoring = metrics.Scoring(rouge.Scorer(stemming=False), by_id, ("I don't know",))
    way = row.system if way == "same" else way
    return metrics.score(row, of or example(1, page="page1"), way, scoring)


def test_exact_match_and_token_f1_ignore_case_punctuation_and_articles():
    assert figures(answer("answer is BLUE"))["exact_match"] == 1
    assert figures(answer("answer is blue indeed"))["exact_match"] == 0
    assert figures(answer("answer is blue indeed"))["token_f1"] == pytest.approx(6 / 7)
    assert figures(answer(""))["token_f1"] == 0


def test_a_citation_is_right_where_it_overlaps_the_evidence():
    """The evidence is bytes 0 to 4 of page1."""
    found = figures(answer("x", citations=(cited(3, 9), cited(4, 9), cited(0, 4, "page2"))))
    assert found["citation_precision"] == pytest.approx(1 / 3)
    assert found["citation_recall"] == 1
    assert figures(answer("x"))["citation_recall"] == 0
    assert "citation_precision" not in figures(answer("x"))
    assert "citation_recall" not in figures(answer("x", system="base"))


def test_evidence_has_the_address_of_the_place_where_it_begins():
    later = chunk("later", 12, 40)
    first = chunk("first", 5, 20).model_copy(
        update={"url": "p#page=1", "marks": ((10, "page=2"), (16, "page=3"))}
    )
    ends = [(0, 6), (5, 9), (10, 30), (15, 17), (16, 18)]
    spans = [Evidence(document_id="page1", start=s, end=e, text="") for s, e in ends]
    found = [metrics.address(span, [later, first]) for span in spans]
    assert found == [f"p#page={n}" for n in (1, 1, 2, 2, 3)]
    assert metrics.address(spans[0], [later]) == ""


def test_retrieval_is_judged_by_the_rank_of_the_first_chunk_that_overlaps_the_evidence():
    chunks = [chunk("far", 10, 20), chunk("near", 2, 8), chunk("other", 0, 9, "page2")]
    found = figures(answer("x", "tuned_rag", chunk_ids=("far", "other", "near")), chunks)
    assert found["recall_at_1"] == 0
    assert found["recall_at_3"] == 1
    assert found["reciprocal_rank"] == pytest.approx(1 / 3)
    nothing = figures(answer("x", "quote"), chunks)
    assert (nothing["recall_at_3"], nothing["reciprocal_rank"]) == (0, 0)
    assert "recall_at_1" not in figures(answer("x", "tuned", chunk_ids=("near",)), chunks)


def test_without_evidence_neither_citations_nor_retrieval_are_judged():
    asked = example(1).model_copy(update={"evidence": ()})
    found = figures(answer("x", "quote", citations=(cited(0, 4),)), of=asked)
    assert not {name for name in found if re.match("citation|recall|reciprocal", name)}


def test_a_recorded_answer_is_judged_by_its_text_alone():
    found = figures(answer("the answer is blue"), way=None)
    assert found["rougeL_f1"] == 1
    assert not {name for name in found if re.match("citation|recall_at|reciprocal", name)}


@pytest.mark.parametrize(
    "said", ["That is not in the documents.", "that is not in the documents", "I don't know, sorry"]
)
def test_a_refusal_is_known_by_its_beginning_whatever_its_marks(said):
    assert figures(answer(said))["refused"] == 1


@pytest.mark.parametrize("said", ["", "The documents say blue.", "Well, I don't know"])
def test_another_answer_is_no_refusal(said):
    assert figures(answer(said))["refused"] == 0


def test_abstention_is_judged_beside_refusing_always_and_answering_always():
    """Ten questions, four without an answer: three of these are refused, and one of the six."""
    examples = [
        example(n).model_copy(update={"kind": "unanswerable"}) if n < 4 else example(n)
        for n in range(10)
    ]
    no = "That is not in the documents."
    says = {f"same_fact{n}": no if n < 3 or n == 9 else "blue" for n in range(10)}
    scores = {("tuned", e.id): figures(answer(says[e.id]), of=e) for e in examples}
    summary = metrics.summarize(("tuned",), examples, scores, {})
    found = summary["tuned"]
    assert found["abstention_precision"] == pytest.approx(3 / 4)
    assert found["abstention_recall"] == pytest.approx(3 / 4)
    assert found["abstention_f1"] == pytest.approx(3 / 4)
    assert found["fabrication_rate"] == pytest.approx(1 / 4)
    assert found["false_refusal_rate"] == pytest.approx(1 / 6)
    refusing, answering_always = (
        summary["baselines"][name] for name in ("always_refuse", "always_answer")
    )
    assert refusing["abstention_f1"] == pytest.approx(2 * 0.4 / 1.4)
    assert (refusing["fabrication_rate"], refusing["false_refusal_rate"]) == (0, 1)
    assert (answering_always["fabrication_rate"], answering_always["abstention_f1"]) == (1, 0)


def test_the_perplexity_of_a_track_is_that_of_all_its_tokens_together():
    examples = [example(1), example(2)]
    scores = scored(examples, {"base": "x"})
    likely = {
        ("base", examples[0].id): Likelihood(0.0, 1, 4),
        ("base", examples[1].id): Likelihood(6.0, 2, 9),
    }
    found = metrics.summarize(("base",), examples, scores, likely)["base"]
    assert found["reference_perplexity"] == pytest.approx(7.3891, abs=1e-4)  # e² of 6 nats in 3


def test_a_figure_that_does_not_apply_to_an_answer_is_left_out_of_the_mean():
    assert metrics.mean([{"a": 1, "b": 4}, {"a": 3}]) == {"a": 2, "b": 4}


def test_percentiles_are_of_rouge_l():
    rows = [{"rougeL_f1": value / 10} for value in range(11)]
    assert metrics.percentiles(rows) == pytest.approx(
        {"rougeL_f1_p10": 0.1, "rougeL_f1_p50": 0.5, "rougeL_f1_p90": 0.9}
    )
    assert metrics.percentiles(rows[:1])["rougeL_f1_p90"] == 0


def judged(num, says, seed=0):
    examples = [example(n) for n in range(num)]
    found = verdict.judge(
        ("quote", "base", "base_rag", "tuned"),
        examples,
        scored(examples, says),
        "rougeL_f1",
        seed,
        2000,
    )
    rows = found["tracks"]["same_fact"]["comparisons"]
    return {(row["first"], row["second"]): row for row in rows}


def sometimes_right(share):
    return lambda e: e.answer if random.Random(e.id).random() < share else "the sky"


def test_a_planted_gain_is_better_and_a_system_against_its_equal_is_not_shown():
    says = {
        "quote": sometimes_right(0.3),
        "base": sometimes_right(0.3),
        "base_rag": sometimes_right(0.3),
        "tuned": sometimes_right(0.9),
    }
    rows = judged(120, says)
    assert rows["tuned", "base"]["word"] == "better"
    assert rows["tuned", "base"]["low"] > 0
    assert "tuned is better than base: +0." in rows["tuned", "base"]["sentence"]
    assert rows["base", "quote"]["word"] == "not shown"


def test_a_planted_loss_is_worse():
    rows = judged(120, {"quote": lambda e: e.answer, "tuned": "the sky"})
    assert rows["tuned", "quote"]["word"] == "worse"


def test_below_thirty_questions_it_is_too_few_in_words():
    rows = judged(20, {"base": "the sky", "tuned": lambda e: e.answer})
    assert rows["tuned", "base"]["word"] == "too few"
    assert "too few questions or pages for a verdict" in rows["tuned", "base"]["sentence"]


def test_the_same_scores_give_the_same_verdict_in_any_order():
    says = {"base": sometimes_right(0.4), "tuned": sometimes_right(0.6)}
    examples = [example(n) for n in range(60)]
    shuffled = random.Random(1).sample(examples, len(examples))
    made = [
        json.dumps(
            verdict.judge(("base", "tuned"), e, scored(e, says), "rougeL_f1", 3, 2000),
            sort_keys=True,
        )
        for e in (examples, shuffled)
    ]
    assert made[0] == made[1]


def test_another_reference_is_another_test_set():
    assert verdict.testset_digest([example(1)]) != verdict.testset_digest([example(1, answer="x")])
    assert verdict.testset_digest([example(1), example(2)]) == verdict.testset_digest(
        [example(2), example(1)]
    )


# --- the gate ----------------------------------------------------------------------------------


def gated(says, bound=0.0, direction="higher", metric="rougeL_f1", num=120):
    asked = verdict.Gate(
        system="tuned", track="same_fact", metric=metric, direction=direction, bound=bound
    )
    examples = [example(n) for n in range(num)]
    return verdict.gate(asked, examples, scored(examples, says), 0, 2000)


def test_the_gate_lets_a_shown_gain_over_the_base_pass_where_there_is_no_champion():
    found = gated({"base": "the sky", "tuned": lambda e: e.answer})
    assert found["passed"]
    assert found["rival"] == "base"
    assert "passed: the model becomes the champion" in found["sentence"]


def test_the_gate_judges_against_the_champion_where_there_is_one():
    says = {"base": "the sky", "champion": lambda e: e.answer, "tuned": sometimes_right(0.7)}
    found = gated(says)
    assert found["rival"] == "champion"
    assert not found["passed"]
    assert found["difference"] < 0
    assert "stays a challenger" in found["sentence"]


def test_a_bound_below_zero_lets_an_equal_model_pass_and_zero_does_not():
    says = {"base": sometimes_right(0.5), "tuned": sometimes_right(0.5)}
    assert not gated(says)["passed"]
    assert gated(says, bound=-0.05)["passed"]


def test_where_lower_is_better_the_gain_is_what_it_is_lower_by():
    says = {"base": lambda e: e.answer, "tuned": "the sky"}
    found = gated(says, direction="lower")
    assert found["passed"]
    assert found["difference"] > 0


def test_too_few_questions_pass_no_gate():
    found = gated({"base": "the sky", "tuned": lambda e: e.answer}, num=20)
    assert not found["passed"]
    assert "too few questions or pages (20 on 12) to judge" in found["sentence"]


def test_a_gate_on_a_figure_that_is_not_there_names_those_that_are():
    with pytest.raises(PipelineError, match=r"gate.metric: 'rougeL' \(did you mean rougeL_"):
        gated({"base": "x", "tuned": "y"}, metric="rougeL")


def test_the_challenger_is_compared_with_the_champion_and_with_the_systems_of_others():
    systems = ("quote", "base", "tuned", "tuned_rag", "champion", "zephyr", "zephyr_rag")
    found = set(verdict.pairs(systems))
    assert {("tuned", "champion"), ("tuned", "zephyr"), ("tuned_rag", "zephyr_rag")} <= found
    assert {(s, "quote") for s in systems if s != "quote"} <= found


# --- gold --------------------------------------------------------------------------------------

COLUMNS = gold.Config(question="question", answer="answer", id="id", url="url", recorded=())
PAGES = [
    chunk("one", 0, 10).model_copy(update={"url": "https://x.org/a#top"}),
    chunk("two", 10, 30).model_copy(update={"url": "https://x.org/a#end"}),
    chunk("else", 0, 5, "page2").model_copy(update={"url": "https://x.org/b"}),
]


def write_csv(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_gold_questions_have_the_page_of_their_address_as_evidence(tmp_path):
    path = write_csv(
        tmp_path / "gold.csv",
        ("question", "answer", "url"),
        ('Which, "one"?', "blue", "https://x.org/a#end https://x.org/b"),
        ("Where?", "here", "https://x.org/a"),
        ("Who?", "nobody", "https://x.org/missing"),
        ("Why?", "", ""),
    )
    found = gold.read(path, COLUMNS, PAGES)
    spans = [[(e.document_id, e.start, e.end) for e in row.evidence] for row in found.examples]
    assert spans == [[("page1", 10, 30), ("page2", 0, 5)], [("page1", 0, 30)], [], []]
    assert found.unknown_urls == ["https://x.org/missing"]
    assert [row.kind for row in found.examples] == ["imported"] * 3 + ["unanswerable"]
    assert {row.track for row in found.examples} == {"gold"}
    assert found.examples[3].answer == "That is not in the documents."


def test_an_address_with_an_anchor_inside_of_a_chunk_is_what_stands_there(tmp_path):
    page = PAGES[1].model_copy(update={"marks": ((15, "page=2"), (22, "page=3"))})
    rows = [[f"q{n}?", "a", f"https://x.org/a#{n}"] for n in ("end", "page=2", "page=3")]
    path = write_csv(tmp_path / "gold.csv", ("question", "answer", "url"), *rows)
    found = gold.read(path, COLUMNS, [PAGES[0], page])
    assert [(e.start, e.end) for row in found.examples for e in row.evidence] == [
        (10, 15),
        (15, 22),
        (22, 30),
    ]


def test_jsonl_and_csv_of_a_folder_are_read_together_and_other_files_not(tmp_path):
    write_csv(tmp_path / "a.csv", ("question", "answer"), ("one?", "1"))
    rows = [{"question": "two?", "answer": 2, "url": ["https://x.org/b"]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "README.md").write_text("question")
    found = gold.read(tmp_path, COLUMNS, PAGES)
    assert [(row.question, row.answer) for row in found.examples] == [("one?", "1"), ("two?", "2")]
    assert len(found.examples[1].evidence) == 1


def test_recorded_columns_are_answers_of_other_systems(tmp_path):
    path = write_csv(
        tmp_path / "gold.csv",
        ("question", "answer", "GPT-3.5", "curie"),
        ("one?", "1", "one", "two"),
        ("two?", "2", "", "two"),
    )
    cfg = COLUMNS.model_copy(update={"recorded": ("GPT-3.5", "curie")})
    said = [(row.system, row.question, row.answer) for row in gold.read(path, cfg, []).recorded]
    assert said == [("GPT-3.5", "one?", "one"), ("curie", "one?", "two"), ("curie", "two?", "two")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("question", "anwser"), ("one?", "1")],
            r"gold\.csv:1: no column 'answer' \(did you mean anwser\?\); it has question, anwser",
        ),
        (
            [("id", "question", "answer"), ("a", "one?", "1"), ("a", "two?", "2")],
            r"gold\.csv:3: the id 'a' stands at .*gold\.csv:2 too: remove one",
        ),
        (
            [("question", "answer"), ("one?", "1"), ("one?", "1")],
            r"gold\.csv:3: the question 'one\?' with its answer stands at .*:2 too",
        ),
        ([("question", "answer"), ("", "1")], r"gold\.csv:2: 'question' is blank"),
        ([("question", "answer"), ("one?", "1", "x")], r"gold\.csv:2: expected 2 columns"),
        ([("question", "answer"), ("one?",)], r"gold\.csv:2: expected 2 columns"),
    ],
)
def test_a_bad_gold_file_is_one_line_that_names_file_line_and_column(tmp_path, rows, said):
    path = write_csv(tmp_path / "gold.csv", *rows)
    with pytest.raises(PipelineError, match=said):
        gold.read(path, COLUMNS, [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"question": "a", "answer": "b"}\n{"half', r"gold\.jsonl:2: not JSON"),
        (b"[1]\n", r"gold\.jsonl:1: expected an object"),
        (b'{"question": "a"}\n', r"gold\.jsonl:1: no column 'answer'"),
        (b'{"question": {"a": 1}, "answer": "b"}\n', r"jsonl:1: 'question': .*expected text"),
        (b'{"question": "\xff"}\n', r"gold\.jsonl: expected UTF-8 text"),
        (b'{"question": "a", "answer": "b", "url": 3}\n', r"jsonl:1: 3: expected an address"),
    ],
)
def test_a_bad_gold_line_is_one_line_too(tmp_path, content, said):
    path = tmp_path / "gold.jsonl"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=said):
        gold.read(path, COLUMNS, [])


# --- a run without a model of ours -------------------------------------------------------------

TEXTS = {
    "page1": "# Apples\n\nApples are red and grow on trees.\n\n# Pears\n\nPears are green.",
    "page2": "# Plums\n\nPlums are blue and grow in gardens.",
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with an index of two pages and a gold file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    chunks = [
        chunk(f"c{name}", 0, len(text), name).model_copy(
            update={"text": text, "url": f"https://x.org/{name}"}
        )
        for name, text in TEXTS.items()
    ]
    store.write(tmp_path / "chunks.jsonl", chunks)
    index.run(
        index.Config(k1=1.5, b=0.75, store=Flat(kind="flat"), max_reject_rate=0.0),
        NoEmbedder(kind="none"),
        tmp_path / "chunks.jsonl",
        tmp_path / "index",
    )
    write_csv(
        tmp_path / "gold.csv",
        ("question", "answer", "url", "old"),
        ("What colour are plums?", "Plums are blue.", "https://x.org/page2", "blue"),
        ("What colour are pears?", "Pears are green.", "https://x.org/page1", "red"),
        ("Who eats stones?", "", "", "I don't know."),
    )
    return tmp_path


def settings(**changes):
    with_defaults = pipeline_section() | {"python": "none/python"}
    keys = with_defaults | {"systems": ["quote"], "perplexity": False, "resamples": 1000} | changes
    return config.load({"evaluate": keys}, "evaluate", evaluate.Config)


def pipeline_section():
    import yaml

    return yaml.safe_load((ROOT / "params.yaml").read_text())["evaluate"]


ASKING = answering.Config(
    search=LEXICAL, top_k=2, context_tokens=200, num_sentences=1, max_tokens=20, temperature=0.0
)


def evaluated(workspace, out, cfg, **inputs):
    inputs.setdefault("gold", workspace / "gold.csv")
    evaluate.run(
        cfg, ASKING, None, NoEmbedder(kind="none"), workspace / "index", workspace / out, **inputs
    )
    return workspace / out


def hosted(server, **changes):
    keys = chat.config(server.address).model_dump() | {"retrieval": True, "api_key_env": None}
    return {"zephyr": keys | {"prompt_price_usd_per_mtok": 1e4} | changes}


def test_quoting_a_hosted_model_and_recorded_answers_are_scored_side_by_side(workspace):
    def answer_it(call, number):
        asked = call.server.bodies[number - 1]["messages"]
        told = any(turn["role"] == "system" and "blue" in turn["content"] for turn in asked)
        call.reply("Plums are blue." if told else "That is not in the documents.")

    with chat.serving(answer_it) as server:
        columns = {**COLUMNS.model_dump(), "recorded": ["old"]}
        cfg = settings(endpoints=hosted(server), gold=columns)
        out = evaluated(workspace, "out", cfg)
        assert len(server.bodies) == 5, "for stones there is no passage to show"
    found = store.read_json(out / "metrics.json")
    assert {"quote", "zephyr", "zephyr_rag", "old"} <= set(found)
    assert found["quote"]["recall_at_3"] == 1
    assert found["zephyr"]["abstention_recall"] == 1
    assert found["zephyr"]["false_refusal_rate"] == 1
    assert found["zephyr_rag"]["exact_match"] > found["zephyr"]["exact_match"] == 1 / 3
    assert found["old"]["num_questions"] == 3
    assert "recall_at_1" not in found["old"]
    spent = store.read_json(out / "timings.json")["systems"]
    assert spent["zephyr"]["cost_usd_per_answer"] == pytest.approx((11 * 1e4 + 7 * 2) / 1e6)
    assert spent["zephyr"]["p50_s"] > 0


def test_the_same_answers_give_the_same_bytes_but_for_latency_and_cost(workspace):
    with chat.serving(chat.steps(chat.good)) as server:
        cfg = settings(endpoints=hosted(server))
        made = [evaluated(workspace, out, cfg) for out in ("one", "two")]
        assert len(server.bodies) == 5, "asked again"
    for name in sorted(path.name for path in made[0].iterdir()):
        texts = [(folder / name).read_text() for folder in made]
        if name == "timings.json":
            continue
        if name == "report.html":
            texts = [re.sub(r'(?s)<section id="time">.*?</section>', "", text) for text in texts]
            assert 'id="time"' not in texts[0]
        assert texts[0] == texts[1], name


def test_an_endpoint_that_dies_in_the_middle_is_one_line_and_a_rerun_asks_only_the_rest(workspace):
    def dies(call, number):
        call.reply("fine") if number <= 2 else call.fail(500)

    with chat.serving(dies) as server:
        endpoints = hosted(server, concurrency=1, max_attempts=1, retrieval=False)
        with pytest.raises(PipelineError) as raised:
            evaluated(workspace, "out", settings(endpoints=endpoints))
        said = str(raised.value)
        assert re.match(r"evaluate\.endpoints\.zephyr at http://127\S+: 500", said)
        assert "run again, and only what has no answer is asked" in said
        assert "\n" not in said
        server.answer = chat.steps(chat.good)
        before = len(server.bodies)
        evaluated(workspace, "out", settings(endpoints=endpoints))
        assert len(server.bodies) - before == 1


KILLED = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from pathlib import Path
import test_evaluate as here
here.evaluated(Path.cwd(), "out", here.settings(endpoints=here.json.loads(sys.argv[1])))
"""


def test_a_killed_evaluation_asks_only_the_rest(workspace):
    """The server kills the process that asks, once it has answered two questions."""
    killer = []

    def answer_it(call, number):
        if number == 3 and killer:
            killer.pop().kill()
        call.reply("fine")

    with chat.serving(answer_it) as server:
        endpoints = hosted(server, concurrency=1, retrieval=False)
        code = KILLED.format(root=str(ROOT))
        child = subprocess.Popen([sys.executable, "-c", code, json.dumps(endpoints)])
        killer.append(child)
        assert child.wait(timeout=60) == -9
        assert len(server.bodies) == 3
        evaluated(workspace, "out", settings(endpoints=endpoints))
        assert len(server.bodies) == 4, "only the question that was in flight is asked again"


def test_a_question_that_is_refused_is_a_reject_and_too_many_are_a_failure(workspace):
    def refuses(call, number):
        call.fail(400) if number == 1 else call.reply("fine")

    with chat.serving(refuses) as server:
        endpoints = hosted(server, concurrency=1, retrieval=False)
        out = evaluated(workspace, "out", settings(endpoints=endpoints, max_reject_rate=0.5))
        [reject] = store.read(out / "rejects.jsonl", evaluate.Reject)
        assert reject.reason == "zephyr_unanswered"
    with chat.serving(lambda call, _: call.fail(400)) as server:
        endpoints = hosted(server, retrieval=False)
        with pytest.raises(PipelineError, match=r"3 of 6 questions went unanswered \(evaluate.max"):
            evaluated(workspace, "out", settings(endpoints=endpoints, max_reject_rate=0.1))


def test_a_hosted_models_key_stands_in_no_file(workspace, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    with chat.serving(chat.steps(chat.good)) as server:
        evaluated(workspace, "out", settings(endpoints=hosted(server, api_key_env="TEST_KEY")))
        assert server.headers[0]["authorization"] == "Bearer sk-secret-0815"
    for path in workspace.rglob("*"):
        assert not path.is_file() or b"sk-secret-0815" not in path.read_bytes(), path


@pytest.mark.parametrize("which", ["endpoints.zephyr", "judge"])
def test_a_key_that_is_not_set_is_one_line_before_anything_is_asked(workspace, monkeypatch, which):
    monkeypatch.delenv("TEST_KEY", raising=False)
    with chat.serving(chat.steps(chat.good)) as server:
        [good] = hosted(server).values()
        [keyless] = hosted(server, api_key_env="TEST_KEY").values()
        judge = {k: v for k, v in keyless.items() if k != "retrieval"}
        judge |= {"criteria": {"style": "plain"}, "pairs": [["quote", "good"]]}
        judge["num_questions"] = None
        changes = {"judge": {"judge": judge}, "endpoints.zephyr": {}}[which]
        endpoints = {"good": good} | ({"zephyr": keyless} if which != "judge" else {})
        with pytest.raises(
            PipelineError, match=rf"evaluate\.{which}\.api_key_env: no env.*TEST_KEY"
        ):
            evaluated(workspace, "out", settings(endpoints=endpoints, **changes))
        assert server.bodies == []


def test_no_question_at_all_is_one_line_that_says_what_to_raise(workspace):
    store.write(workspace / "test.jsonl", [])
    with pytest.raises(PipelineError, match=r"no test questions; raise synthesize\.num_same_fact"):
        evaluated(workspace, "out", settings(), gold=None, test=workspace / "test.jsonl")


def test_a_model_of_ours_without_an_endpoint_is_one_line(workspace):
    with pytest.raises(PipelineError, match=r"'tuned' is a model of ours, and no --endpoint"):
        evaluated(workspace, "out", settings(systems=["quote", "tuned"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"systems": []},
        {"systems": ["quote", "quote"]},
        {"gold": {**COLUMNS.model_dump(), "recorded": ["quote"]}},
        {"gold": {**COLUMNS.model_dump(), "recorded": ["kinds"]}},
    ],
)
def test_two_systems_of_one_name_or_none_are_refused(changes):
    with pytest.raises(PipelineError, match=r"evaluate: .*(name|at least one system)"):
        settings(**changes)


def test_people_evaluate_from_the_command_line_without_training_anything(workspace):
    with chat.serving(chat.steps(chat.good)) as server:
        (workspace / "conf").symlink_to(ROOT / "conf")
        at = "evaluate.endpoints.hosted"
        overrides = ["evaluate=hosted", f"{at}.base_url={server.address}", f"{at}.api_key_env=null"]
        overrides += ["evaluate.systems=[quote]", "embedder=none", "tracking=none"]
        overrides += ["answer.search.method=lexical"]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "stages", "evaluate", *overrides),
                *("--gold", "gold.csv", "--index", "index", "--out", "out/evaluate"),
            ],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert set(store.read_json(workspace / "out/evaluate/metrics.json")) >= {
        "quote",
        "hosted",
        "hosted_rag",
    }
    assert (workspace / "out/evaluate/report.html").exists()


def test_the_shots_are_whole_questions_within_the_tokens_and_few_change_with_a_page_more():
    validation = [example(n, answer=f"answer {n} is blue") for n in range(20)]
    found = asking.shots(validation, 3, 200, seed=0)
    assert [turn.role for turn in found] == ["user", "assistant"] * 3
    assert len(asking.shots(validation, 3, 30, seed=0)) < 6
    more = asking.shots([*validation, example(21)], 3, 200, seed=0)
    assert len(set(found) & set(more)) >= 4
    assert asking.shots([], 3, 200, seed=0) == ()


# --- runs that compare -------------------------------------------------------------------------


def a_run(folder, examples, says):
    store.write_json(
        folder / "data/evaluate/verdict.json", {"testset": verdict.testset_digest(examples)}
    )
    scores = scored(examples, says)
    rows = [
        evaluate.Score(
            example_id=id,
            system=system,
            track="same_fact",
            page=verdict.page(next(e for e in examples if e.id == id)),
            figures=figures,
        )
        for (system, id), figures in scores.items()
    ]
    store.write(folder / "data/evaluate/scores.jsonl", rows)


def test_two_runs_over_one_test_set_are_compared_by_system(tmp_path, monkeypatch):
    examples = [example(n) for n in range(120)]
    runs = {None: {"tuned": lambda e: e.answer, "new": "x"}, "old": {"tuned": "the sky"}}
    read = {}
    for name, says in runs.items():
        a_run(tmp_path / str(name), examples, says)
        folder = tmp_path / str(name) / "data/evaluate"
        rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        read[name] = (store.read_json(folder / "verdict.json"), rows)
    monkeypatch.setattr(pipeline, "_scores", read.get)
    [found] = pipeline.compare("old", None, "rougeL_f1")
    assert (found.system, found.word) == ("tuned", "better")
    assert "the workspace: tuned is better than old: tuned: +" in found.sentence
    with pytest.raises(PipelineError, match=r"--metric rouge_L .*expected one of"):
        pipeline.compare("old", None, "rouge_L")


def test_runs_over_different_test_sets_are_not_compared(tmp_path, monkeypatch):
    read = {name: ({"testset": digest}, []) for name, digest in ((None, "aaa"), ("old", "bbb"))}
    monkeypatch.setattr(pipeline, "_scores", read.get)
    with pytest.raises(PipelineError, match="runs over different test sets do not compare"):
        pipeline.compare("old", None, "rougeL_f1")
