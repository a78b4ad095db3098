"""The report: what it says, what it leaves out, and that no answer can do anything to the page."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser as Page

from stages.core import model
from stages.core.records import Answer, Evidence, Example, Message
from stages.evaluate import charts, metrics, report, rouge, verdict

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"
RIGHT = "the answer is blue"
SCORER = rouge.Scorer(stemming=False)


def example(number, track="same_fact", question=None, kind="factual", page=None):
    question = question or f"question {number}?"
    evidence = Evidence(document_id=page or f"page{number % 12}", start=0, end=4, text="blue")
    return Example(
        id=f"{track}{number:03}",
        kind=kind,
        track=track,
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=RIGHT),
        ),
        question=question,
        answer=RIGHT,
        chunk_ids=("c",),
        evidence=(evidence,),
        call_id="call",
    )


def findings(says, examples=None, **parts):
    """Of systems that say each a text, or a function of the example; None leaves it unanswered."""
    examples = [example(n) for n in range(40)] if examples is None else examples
    said = {
        (system, e.id): text(e) if callable(text) else text
        for system, text in says.items()
        for e in examples
    }
    answers = [
        Answer(
            example_id=e.id,
            system=system,
            question=e.question,
            answer=said[system, e.id],
            reference=e.answer,
            chunk_ids=(),
            citations=(),
            tokens=3,
        )
        for system in says
        for e in examples
        if said[system, e.id] is not None
    ]
    scores = {
        (row.system, row.example_id): {
            **SCORER.score(row.answer, row.reference),
            "exact_match": float(row.answer == row.reference),
        }
        for row in answers
    }
    systems = tuple(says)
    summary = {
        **over(systems, examples, scores),
        "tracks": {
            track: over(systems, [e for e in examples if e.track == track], scores)
            for track in sorted({e.track for e in examples})
        },
        "kinds": {
            kind: over(systems, [e for e in examples if e.kind == kind], scores)
            for kind in sorted({e.kind for e in examples})
        },
    }
    judged = verdict.judge(systems, examples, scores, "rougeL_f1", 0, 2000)
    made = report.Findings(judged, summary, examples, answers, scores, {}, (), {}, {})
    return replace(made, **parts)


def over(systems, examples, scores):
    rows = {s: [scores[s, e.id] for e in examples if (s, e.id) in scores] for s in systems}
    return {
        system: {**metrics.mean(found), "num_questions": len(found)}
        for system, found in rows.items()
        if found
    }


def full():
    """With every part, and hostile text wherever a text may come from outside."""
    examples = [
        *(example(n, question=f"{HOSTILE} {n}") for n in range(40)),
        *(example(n, "held_out", kind="unanswerable" if n < 5 else "howto") for n in range(12)),
        example(1, "gold"),
    ]
    says = {
        "quote": "the sky is",
        "base": HOSTILE,
        "base_rag": "the sky",
        "tuned": lambda e: RIGHT if int(e.id[-1]) % 2 else HOSTILE,
        "tuned_rag": RIGHT,
        HOSTILE: "the answer",
    }
    made = findings(says, examples)
    for system in ("base", "tuned"):
        made.metrics[system] |= {
            "reference_perplexity": 12.5,
            "recall_at_1": 0.5,
            "abstention_f1": 0.25,
            "similarity": 0.75,
        }
    made.metrics["baselines"] = {
        "always_refuse": {"abstention_f1": 0.17},
        "always_answer": {"abstention_f1": 0.0},
    }
    comparisons = made.judged["tracks"]["same_fact"]["comparisons"]
    made.judged.update(
        base=HOSTILE,
        forgetting={
            "base": {"perplexity": math.inf, "bits_per_byte": 2.5},
            "tuned": {"perplexity": 4212.0, "bits_per_byte": 3.5},
            "sentence": HOSTILE,
        },
        judge={
            "criteria": {HOSTILE: {"comparisons": comparisons}, "empty": {"comparisons": []}},
            "consistency": 0.875,
            "calibration": {"num": 50, "agreement": 0.82, "kappa": 0.61},
            "model": HOSTILE,
        },
        champion={"version": HOSTILE, "sentence": HOSTILE},
        gate={"passed": False, "sentence": HOSTILE},
    )
    return replace(
        made,
        sources={
            e.id: (
                "https://example.org/a?b=1&c=2",
                'https://example.org/"onmouseover="alert(1)',
                "javascript:alert(1)",
                " https://example.org",
                "data:text/html,x",
                HOSTILE,
            )
            for e in examples
        },
        curve=[
            {"step": float(step), "loss": 4 / step, "learning_rate": 0.1, "eval_loss": math.nan}
            for step in range(1, 30)
        ],
        rejects={HOSTILE: {HOSTILE: 1200, "other": 1}, "index": {}},
        timings={
            "systems": {HOSTILE: {"p50_s": 0.5, "p95_s": None, "num_answers": 3}},
            "stages": {HOSTILE: {"seconds": 12.0, "cost_usd": 0.25}},
        },
    )


EMPTY = report.Findings({}, {}, (), (), {}, {}, (), {}, {})


class Strict(HTMLParser):
    """Fails at a tag that is not closed, or closed by another."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len({name for name, _ in attrs}), self.get_starttag_text()
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> at {self.getpos()}"


def check(page):
    """Well-formed, with nothing from outside and nothing that runs; its tree."""
    strict = Strict()
    strict.feed(page)
    strict.close()
    assert strict.open == []
    page.encode()
    tree = Page(page)
    assert not tree.css("script, link, img, iframe, object, embed, base, form, input, video")
    for node in tree.css("*"):
        for name, value in node.attributes.items():
            assert not name.startswith("on"), node.html
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert node.tag == "a", node.html
                assert value.startswith(("https://", "http://")), value
    for style in tree.css("style"):
        assert not re.search(r"url\(|@import", style.text())
    for drawing in tree.css("svg[role]"):
        assert drawing.css_first("title").text().strip()
    assert len(tree.css("section#time")) == 1
    return tree


def told(page):
    """What a reader sees, spaces alike."""
    return " ".join(Page(page).body.text(separator=" ").split())


def claims(says, examples=None):
    made = findings(says, examples)
    rows = made.judged["tracks"]["same_fact"]["comparisons"]
    return {claim.question: claim for claim in report.headline(rows)}


HELP = "Did tuning help?"
RETRIEVAL = "Is tuning better than retrieval?"
QUOTING = "Is any model better than plain quoting?"


def test_a_scratch_model_is_said_to_know_nothing_else():
    scratch = model.Scratch(
        kind="scratch",
        tokenizer="cl100k",
        vocab_size=600,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        context_tokens=128,
        pretrain_epochs=1.0,
        pretrain_learning_rate=1e-3,
        format=None,
    )
    assert "knows nothing" in report.describe(scratch, {"engine": "embedded"})
    hub = model.Hub(
        kind="hub",
        id="org/m",
        revision="abc",
        context_tokens=512,
        chat_template=None,
        template_head=None,
        end_of_turn=None,
        license=None,
        trained_answers="all",
        format=None,
    )
    assert report.describe(hub, {"engine": "tgi"}) == "Base: org/m of the hub, revision abc."


def test_hostile_texts_are_shown_and_do_nothing():
    page = report.render(full())
    tree = check(page)
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page, "a text is no template"
    assert HOSTILE in tree.css_first("#changes").text()
    assert HOSTILE in tree.css_first("#grounding ~ #judge caption").text()
    assert HOSTILE in tree.css_first("#time").text()


def test_only_addresses_of_the_web_become_links():
    tree = check(report.render(full()))
    links = {link.attributes["href"] for link in tree.css("a")}
    assert links == {
        "https://example.org/a?b=1&c=2",
        'https://example.org/"onmouseover="alert(1)',
    }
    assert "javascript:alert(1)" in tree.css_first(".links").text(), "the others stay readable"


TEXTS = st.text(max_size=40)


@settings(max_examples=25, deadline=None)
@given(TEXTS, TEXTS.filter(bool), TEXTS, TEXTS)
def test_whatever_the_texts_are_the_page_is_well_formed(question, system, answer, url):
    examples = [example(1, question=question or "?"), example(2)]
    made = findings({"base": answer, "tuned": RIGHT, system: answer}, examples)
    check(report.render(replace(made, sources={e.id: (url,) for e in examples})))


def test_equal_findings_give_equal_bytes_whatever_the_order_of_their_names():
    made = full()
    turned = replace(
        made,
        metrics=dict(reversed(made.metrics.items())),
        examples=made.examples[::-1],
        answers=made.answers[::-1],
        scores=dict(reversed(made.scores.items())),
    )
    assert report.render(made) == report.render(full()) == report.render(turned)


def test_times_change_the_section_of_times_and_nothing_else():
    made = full()
    slower = {"systems": {"base": {"p50_s": 9.0}}, "stages": {}}
    pages = [report.render(replace(made, timings=t)) for t in (made.timings, slower, {})]
    section = re.compile(r'<section id="time">.*?</section>', re.DOTALL)
    assert all(len(section.findall(page)) == 1 for page in pages)
    assert len({section.search(page)[0] for page in pages}) == 3
    assert len({section.sub("", page) for page in pages}) == 1


def test_empty_findings_are_a_page_that_says_so():
    page = report.render(EMPTY)
    check(page)
    assert "no system answered a question" in told(page)
    assert "No time was taken." in told(page)


@pytest.mark.parametrize("part", ["curve", "rejects", "timings", "sources", "answers", "examples"])
def test_a_part_may_be_empty(part):
    page = report.render(replace(full(), **{part: type(getattr(full(), part))()}))
    check(page)
    assert HELP in told(page)


@pytest.mark.parametrize("part", ["judged", "metrics"])
def test_either_file_may_be_without_the_other(part):
    check(report.render(replace(full(), **{part: {}})))


def test_gold_questions_alone_make_a_report():
    made = findings({"base": "x", "tuned": RIGHT}, [example(n, "gold") for n in range(40)])
    page = report.render(made)
    tree = check(page)
    assert [node.attributes["id"] for node in tree.css("section.track")] == ["gold"]
    assert "Questions that people asked" in told(page)


def test_without_a_tuned_model_only_quoting_is_asked_about():
    assert set(claims({"quote": "the sky", "base": RIGHT})) == {QUOTING}
    made = findings({"base": RIGHT})
    assert made.judged["tracks"]["same_fact"]["comparisons"] == []
    assert "Nothing was compared here" in told(report.render(made))


def test_on_one_page_there_is_no_interval():
    made = findings({"base": "x", "tuned": RIGHT}, [example(n, page="one") for n in range(40)])
    page = report.render(made)
    tree = check(page)
    assert "+1.000 (one page, no interval)" in told(page)
    assert tree.css(".dot")
    assert not tree.css(".whisker")


def test_systems_without_a_common_question_have_no_difference():
    says = {
        "base": lambda e: "x" if int(e.id[-1]) % 2 else None,
        "tuned": lambda e: None if int(e.id[-1]) % 2 else RIGHT,
    }
    page = report.render(findings(says))
    check(page)
    assert "There are too few questions to compare the tuned model with the base model" in told(
        page
    )
    assert "no question in common" in told(page)
    assert "Where tuning changed" in told(page)


def test_the_headline_says_what_helped_with_difference_and_interval():
    found = claims({"quote": "x", "base": "x", "base_rag": "x", "tuned": RIGHT, "tuned_rag": RIGHT})
    assert [found[q].verdict for q in (HELP, RETRIEVAL, QUOTING)] == ["Yes", "Yes", "Yes"]
    assert found[HELP].sentence == (
        "The tuned model is better than the base model: +1.000 [+1.000,\u00a0+1.000]; the tuned "
        "model with retrieval is better than the base model with retrieval: "
        "+1.000 [+1.000,\u00a0+1.000]."
    )


def test_a_loss_is_no_gain_and_quoting_that_wins_is_said():
    found = claims({"quote": RIGHT, "base": RIGHT, "base_rag": RIGHT, "tuned": "x"})
    assert [found[q].verdict for q in (HELP, RETRIEVAL, QUOTING)] == ["No gain", "No", "Not shown"]
    assert "is worse than the base model: −1.000" in found[HELP].sentence
    found = claims({"quote": RIGHT, "base": "x", "tuned": "the"})
    assert found[QUOTING].verdict == "No"
    assert found[QUOTING].sentence.startswith(
        "Every model is worse than plain quoting; nearest is the tuned model: −"
    )


def test_an_equal_is_not_shown_and_that_is_called_a_valid_result():
    says = {"quote": "the sky", "base": "the sky", "tuned": "the sky"}
    found = claims(says)
    assert [found[q].verdict for q in (HELP, QUOTING)] == ["No gain shown", "Not shown"]
    assert "no difference" in found[HELP].sentence.lower()
    page = report.render(findings(says))
    assert "“No gain” and “not shown” are valid results" in told(page)
    gain = report.render(findings({"base": "x", "tuned": RIGHT}))
    assert "valid results" not in told(gain)


def test_tuning_that_helps_in_one_way_only_helps_in_part():
    says = {"base": "x", "tuned": RIGHT, "base_rag": RIGHT, "tuned_rag": RIGHT}
    found = claims(says)
    assert found[HELP].verdict == "In part"
    assert "no difference between the tuned model with retrieval and" in found[HELP].sentence


def test_too_few_questions_are_no_verdict():
    found = claims({"quote": "x", "base": "x", "tuned": RIGHT}, [example(n) for n in range(20)])
    assert {found[q].verdict for q in (HELP, QUOTING)} == {"Too few questions"}


def test_a_stranger_that_beats_quoting_is_named_in_quotation_marks():
    found = claims({"quote": "x", "gpt": RIGHT, "base": "x"})
    assert found[QUOTING].sentence.startswith("“gpt” is better than plain quoting: +1.000")


def test_a_track_shows_its_systems_and_only_the_figures_that_there_are():
    tree = check(report.render(full()))
    table = next(t for t in tree.css("#tracks table.figures"))
    heads = [cell.text() for cell in table.css("thead th")]
    assert heads[:3] == ["System", "ROUGE-1", "ROUGE-2"]
    assert "Exact match" in heads
    assert "Similarity" not in heads, "known over all questions, and not for this track"
    rows = [row.css_first("th").text() for row in table.css("tbody tr")]
    assert rows[:3] == ["Plain quoting", "Base model", "Base model with retrieval"]
    assert rows[-1] == HOSTILE


def test_refusals_are_left_out_where_every_question_has_an_answer():
    assert "Always refusing" in told(report.render(full()))
    page = told(report.render(findings({"base": "x"})))
    assert "Every question of this test set has an answer" in page
    assert "Always refusing" not in page


def test_a_judge_that_people_did_not_check_is_said_to_be_so():
    made = full()
    assert "Cohen’s kappa 0.61" in told(report.render(made))
    made.judged["judge"]["calibration"] = None
    assert "It was not compared with people" in told(report.render(made))


def test_the_best_gains_and_the_worst_losses_are_ten_each():
    says = {
        "base": lambda e: RIGHT if int(e.id[-1]) < 5 else "x",
        "tuned": lambda e: "x" if int(e.id[-1]) < 5 else RIGHT,
    }
    tree = check(report.render(findings(says)))
    shown = [row.css_first(".verdict").text() for row in tree.css("ol.changes > li")]
    assert shown == ["+1.000"] * 10 + ["−1.000"] * 10
    page = told(report.render(findings({"base": "x", "tuned": "x"})))
    assert "No answer gained." in page
    assert "No answer lost." in page


def test_a_long_answer_is_cut_and_the_cut_is_said():
    made = findings({"base": "x" * 5000, "tuned": RIGHT}, [example(1)])
    page = report.render(made)
    assert "… (3,500 more characters)" in page
    assert "x" * 1501 not in page


def test_the_curve_tells_where_each_loss_came_from_and_ended():
    rows = [
        {"step": 1.0, "loss": 4.0, "eval_loss": 5.0},
        {"step": 2.0, "loss": 1.5, "eval_loss": 4.5},
        {"step": 3.0, "loss": 0.25, "eval_loss": 6.0},
    ]
    page = report.render(replace(EMPTY, curve=rows))
    tree = check(page)
    assert "from 4 at step 1 to 0.25 at step 3; lowest 0.25 at step 3." in told(page)
    assert "from 5 at step 1 to 6 at step 3; lowest 4.5 at step 2." in told(page)
    assert len(tree.css("polyline")) == 2
    diverged = [{"step": 1.0, "loss": math.nan}, {"step": 2.0, "loss": math.inf}]
    assert 'id="curve"' not in report.render(replace(EMPTY, curve=diverged))


FIGURES = st.floats(-1e6, 1e6)


@given(st.lists(FIGURES, min_size=1))
def test_an_axis_around_zero_holds_its_values_and_keeps_their_order(values):
    scale = charts.around_zero(values)
    assert scale.low == -scale.high
    assert all(scale.low <= value <= scale.high for value in values)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6)), min_size=1))
def test_lines_are_drawn_of_any_points(points):
    drawn = str(charts.lines({"<b>": points}, "<title>"))
    check(f'<html><body><section id="time">{drawn}</section></body></html>')
    assert "nan" not in drawn


def test_a_long_line_is_thinned_to_its_ends():
    drawn = str(charts.lines({"loss": [(step, 1.0) for step in range(20_000)]}, "t"))
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert len(points) <= charts.MAX_POINTS + 1
    assert points[0].startswith("0,")
    assert points[-1].startswith("100,")


def test_an_interval_beyond_the_axis_ends_at_its_end():
    drawn = str(charts.strip(charts.UNIT, 0.99, 0.9, 1.2, "mean", "t"))
    assert 'x1="90.0%" x2="100%"' in drawn or 'x1="90.0%" x2="100.0%"' in drawn
