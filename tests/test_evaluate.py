"""Evaluate: means by track, the verdict in words, the report. The run itself: test_pipeline.py."""

import json
import random
import signal
import subprocess
import sys

import pytest

from stages import evaluate
from stages.core import model, store
from stages.core.errors import PipelineError
from stages.core.records import Answer, Chunk, Citation, Evidence, Example, Message
from stages.evaluate import metrics, report, rouge, verdict

SCRATCH = model.Scratch(
    kind="scratch",
    tokenizer="cl100k",
    vocab_size=600,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    context_tokens=128,
    pretrain_epochs=1.0,
    pretrain_learning_rate=1e-3,
)


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
        (system, e.id): scorer.score(text(e) if callable(text) else text, e.answer)
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
    summary = metrics.summarize(("base", "tuned"), examples, scores)
    assert summary["tuned"]["rougeL_f1"] == pytest.approx(2 / 3)
    assert summary["tracks"]["same_fact"]["tuned"]["rougeL_f1"] == 1
    assert summary["tracks"]["held_out"]["tuned"]["rougeL_f1"] == 0
    assert summary["tracks"]["held_out"]["base"]["num_questions"] == 1


def test_a_system_that_answered_nothing_is_left_out():
    examples = [example(1)]
    scores = scored(examples, {"base": "x"})
    assert set(metrics.summarize(("base", "tuned"), examples, scores)) == {
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


def figures(row, chunks=()):
    by_id = {each.id: each for each in chunks}
    return metrics.score(row, example(1, page="page1"), by_id, rouge.Scorer(stemming=False))


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


def test_retrieval_is_judged_by_the_rank_of_the_first_chunk_that_overlaps_the_evidence():
    chunks = [chunk("far", 10, 20), chunk("near", 2, 8), chunk("other", 0, 9, "page2")]
    found = figures(answer("x", "tuned_rag", chunk_ids=("far", "other", "near")), chunks)
    assert found["recall_at_1"] == 0
    assert found["recall_at_3"] == 1
    assert found["reciprocal_rank"] == pytest.approx(1 / 3)
    nothing = figures(answer("x", "quote"), chunks)
    assert (nothing["recall_at_3"], nothing["reciprocal_rank"]) == (0, 0)
    assert "recall_at_1" not in figures(answer("x", "tuned", chunk_ids=("near",)), chunks)


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


def test_a_scratch_model_is_said_to_know_nothing_else():
    assert "knows nothing" in report.describe(SCRATCH)
    hub = model.Hub(kind="hub", id="org/m", revision="abc", context_tokens=512, chat_template=None)
    assert report.describe(hub) == "Base: org/m of the hub, revision abc."


def test_the_report_shows_tables_verdict_and_escaped_questions():
    examples = [example(n) for n in range(40)]
    says = {"base": "the sky", "tuned": lambda e: e.answer}
    scores = scored(examples, says)
    answers = [
        Answer(
            example_id=e.id,
            system=system,
            question=e.question,
            answer="<script>alert(1)</script>",
            reference=e.answer,
            chunk_ids=(),
            citations=(),
            tokens=3,
        )
        for system in says
        for e in examples
    ]
    found = verdict.judge(("base", "tuned"), examples, scores, "rougeL_f1", 0, 2000)
    found["base"] = report.describe(SCRATCH)
    summary = metrics.summarize(("base", "tuned"), examples, scores)
    page = report.render(found, summary, examples, answers, scores)
    assert "tuned is better than base" in page
    assert "knows nothing" in page
    assert "<script>" not in page
    assert "question 1 &lt;b&gt;" in page
    assert page == report.render(found, summary, examples, answers, scores)


def test_an_empty_test_split_is_one_line_that_says_what_to_raise(tmp_path):
    test = tmp_path / "test.jsonl"
    store.write(test, [])
    with pytest.raises(PipelineError, match=r"no test questions; raise synthesize\.num_same_fact"):
        evaluate.run(None, None, None, test, tmp_path, tmp_path, tmp_path, tmp_path / "out")


CUT_SHORT = """
import os, sys
from pathlib import Path
from stages import evaluate
from stages.core.records import Answer
kept = Path(sys.argv[1])
row = Answer(example_id="e", system="quote", question="q", answer="a", reference="r",
             chunk_ids=(), citations=(), tokens=0).model_dump_json()
kept.write_text(row + "\\n" + row[:20])
os.kill(os.getpid(), 9)
"""


def test_an_answer_that_a_kill_left_half_written_is_dropped_and_the_whole_ones_kept(tmp_path):
    kept = tmp_path / "kept.jsonl"
    killed = subprocess.run([sys.executable, "-c", CUT_SHORT, str(kept)])
    assert killed.returncode == -signal.SIGKILL
    assert [row.example_id for row in evaluate._read_kept(kept)] == ["e"]
    assert kept.read_text().count("\n") == 1
    kept.write_text('{"half')
    assert evaluate._read_kept(kept) == []
    assert evaluate._read_kept(tmp_path / "none") == []


def test_what_was_answered_is_not_asked_again(tmp_path):
    """Only quoting is asked for, and all is kept: no server is started, none could be."""
    examples = [example(1), example(2)]
    kept = tmp_path / "kept.jsonl"
    rows = [answer("blue", "quote").model_copy(update={"example_id": e.id}) for e in examples]
    store.write(kept, rows)
    cfg = evaluate.Config(
        systems=("quote",), stemming=False, concurrency=2, resamples=1000, seed=0, max_reject_rate=0
    )
    got, rejects, seconds = evaluate._ask_all(cfg, None, examples, None, tmp_path / "none", kept)
    assert (got, rejects, seconds) == (rows, [], {})


def test_the_kept_answers_are_those_of_the_same_questions_models_and_settings(
    tmp_path, monkeypatch
):
    from stages import answer as answering

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    asking = answering.Config(
        top_k=1, context_tokens=64, num_sentences=1, max_tokens=5, temperature=0.0
    )
    test = tmp_path / "test.jsonl"
    test.write_text("a")
    first = evaluate._kept_file(asking, test)
    assert evaluate._kept_file(asking, test) == first
    assert evaluate._kept_file(asking.model_copy(update={"top_k": 2}), test) != first
    test.write_text("b")
    assert evaluate._kept_file(asking, test) != first
