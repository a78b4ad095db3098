"""Systems × questions → answers with what they took; what was answered once is not asked again."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles

from stages import answer as answering
from stages import llm
from stages.answer import hosted as asked
from stages.answer.endpoint import Chat, Completion, RefusedError
from stages.answer.retrieval import Index
from stages.core import kept, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Answer, Example, Message, Reject, System, identify


@dataclass(frozen=True)
class Respondent:
    """A system by the name that it has in the results, and how its answers come about."""

    name: str
    way: System
    """Which of Docent's systems its prompts are made like."""
    source: str | None
    """Name of the `Source` that completes them; None for quoting."""
    model: str
    """Names the content of the model, so that equal ones share what was answered."""


@dataclass(frozen=True)
class Source:
    """Where models answer: opened only if a question is left to ask."""

    open: Callable[[], AbstractContextManager[Chat]]
    concurrency: int
    """Questions that it is asked at the same time."""
    usd_per_hour: float = 0.0
    """Price of the machine that it runs on, beside what it charges for an answer."""


@dataclass(frozen=True)
class Asked:
    """An answer and what it took when it was asked."""

    answer: Answer
    seconds: float | None
    """None where the endpoint had it already."""
    cost_usd: float


@dataclass(frozen=True)
class Material:
    """What the answers are made of, beside the questions and the models."""

    index: Index
    index_digest: str
    cfg: answering.Config
    shots: tuple[Message, ...]


def ask_all(
    respondents: Sequence[Respondent],
    examples: Sequence[Example],
    material: Material,
    sources: Mapping[str, Source],
) -> tuple[list[Asked], list[Reject]]:
    """Every respondent's answer to every question, ordered by both, and what went unanswered.

    A refused question is a reject. Where a server ends, PipelineError: the answers before it are
    kept, in .cache/answers.db, and a rerun asks only the rest.
    """
    wanted = [(who, example) for who in respondents for example in examples]
    keys = _keys(wanted, material)
    rejects: list[Reject] = []
    with kept.opened(store.cache("answers.db")) as answers:
        values = answers.find(keys)
        done = len(values)
        for source in [None, *sources]:
            missing = [
                (key, *pair)
                for key, pair in zip(keys, wanted, strict=True)
                if pair[0].source == source and key not in values
            ]
            if not missing:
                continue
            opened = sources[source].open() if source else contextlib.nullcontext(None)
            with opened as chat:

                def ask(
                    key: str, who: Respondent, example: Example, chat: Chat | None = chat
                ) -> Asked | Reject:
                    said = _ask(who, example, chat, material)
                    if isinstance(said, Asked):
                        answers.keep({key: _value(said)})
                    return said

                concurrency = sources[source].concurrency if source else 1
                for (key, who, example), said in _concurrently(ask, missing, concurrency):
                    if isinstance(said, Asked):
                        values[key] = _value(said)
                    else:
                        rejects.append(said)
                    done += 1
                    progress.step(done, len(wanted), f"answers ({who.name}, {example.track})")
        if done == len(wanted) and not sources:
            progress.note("nothing had to be asked")
    found = [
        _restored(values[key], *pair)
        for key, pair in zip(keys, wanted, strict=True)
        if key in values
    ]
    assert len(found) + len(rejects) == len(wanted)
    return found, rejects


Row = tuple[str, Respondent, Example]


def _concurrently(
    ask: Callable[[str, Respondent, Example], Asked | Reject], rows: Sequence[Row], concurrency: int
) -> Iterator[tuple[Row, Asked | Reject]]:
    """Each row with its answer, in order; the first failure ends what has not begun."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures: list[Future[Asked | Reject]] = [pool.submit(ask, *row) for row in rows]
        try:
            for row, future in zip(rows, futures, strict=True):
                yield row, future.result()
        except PipelineError as error:
            raise PipelineError(
                f"{error}; run again, and only what has no answer is asked"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ask(
    who: Respondent, example: Example, chat: Chat | None, material: Material
) -> Asked | Reject:
    turns = example.messages[:-1]  # the last is the reference
    began = time.monotonic()
    try:
        said = answering.ask(
            who.way, turns, material.index, chat, material.cfg, shots=material.shots
        )
    except RefusedError as error:
        return Reject(id=example.id, reason=f"{who.name}_unanswered", detail=error.reason)
    took = time.monotonic() - began
    row = Answer(
        example_id=example.id,
        system=who.name,
        question=example.question,
        answer=said.text,
        reference=example.answer,
        chunk_ids=tuple(hit.chunk.id for hit in said.hits),
        citations=said.citations,
        tokens=said.tokens,
    )
    return Asked(row, None if said.cached else round(took, 4), said.cost_usd)


def _value(asked: Asked) -> dict[str, object]:
    """What is kept: what was said, not to whom."""
    row = asked.answer.model_dump()
    said = {name: row[name] for name in ("answer", "chunk_ids", "citations", "tokens")}
    return {**said, "seconds": asked.seconds, "cost_usd": asked.cost_usd}


def _restored(value: Mapping[str, object], who: Respondent, example: Example) -> Asked:
    said = Answer.model_validate(
        {
            "example_id": example.id,
            "system": who.name,
            "question": example.question,
            "reference": example.answer,
            **{name: value[name] for name in ("answer", "chunk_ids", "citations", "tokens")},
        }
    )
    return Asked(said, value["seconds"], value["cost_usd"])  # type: ignore[arg-type]


def _keys(wanted: Sequence[tuple[Respondent, Example]], material: Material) -> list[str]:
    """A key per answer, of all that shapes it: prompts, settings, model, index and our own code."""
    code = sorted(Path(answering.__file__).parent.rglob("*.py"))
    common = [material.cfg.model_dump(), *map(store.digest, code)]
    shared: dict[Respondent, str] = {}
    for who in {who for who, _ in wanted}:
        closed = who.way in ("base", "base_few_shot")
        shots = [turn.model_dump() for turn in material.shots if who.way == "base_few_shot"]
        searched = "" if closed else material.index_digest
        shared[who] = identify(common, who.way, who.model, searched, shots)
    turns = {
        example.id: identify([turn.model_dump() for turn in example.messages[:-1]])
        for _, example in wanted
    }
    return [identify(shared[who], turns[example.id]) for who, example in wanted]


def spent(
    answers: Sequence[Asked], respondents: Sequence[Respondent], sources: Mapping[str, Source]
) -> dict[str, dict[str, float]]:
    """By system what an answer took: seconds (median, 95th percentile), tokens, US dollars.

    Questions that are asked at the same time share the price of the machine.
    """
    found = {}
    for who in respondents:
        rows = [asked for asked in answers if asked.answer.system == who.name]
        if not rows:
            continue
        seconds = [row.seconds for row in rows if row.seconds is not None]
        cost = sum(row.cost_usd for row in rows)
        if who.source:
            source = sources[who.source]
            cost += sum(seconds) / source.concurrency / 3600 * source.usd_per_hour
        cuts = quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else seconds * 19
        found[who.name] = {
            **({"p50_s": round(cuts[9], 4), "p95_s": round(cuts[18], 4)} if seconds else {}),
            "num_answers": len(rows),
            "tokens_per_answer": round(fmean(row.answer.tokens for row in rows), 2),
            "cost_usd_per_answer": round(cost / len(rows), 8),
        }
    return found


def shots(examples: Sequence[Example], most: int, tokens: int, seed: int) -> tuple[Message, ...]:
    """Turns of up to so many validation examples of one question each, within so many tokens.

    Which ones hangs on the seed and their ids, so that a page more changes few of them.
    """
    from stages.answer import prompt

    chosen: list[Message] = []
    single = [example for example in examples if len(example.messages) == 2]
    for example in sorted(single, key=lambda example: identify(seed, example.id)):
        room = tokens - sum(prompt.count(turn.content) for turn in chosen)
        if len(chosen) < 2 * most and sum(prompt.count(m.content) for m in example.messages) < room:
            chosen += example.messages
    return tuple(chosen)


@dataclass(frozen=True)
class Hosted:
    """A model behind chat completions, as a `Chat`."""

    model: llm.Teacher

    def complete(
        self, model: str, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0
    ) -> Completion:
        return asked.answer(self.model, messages)


def hosted(name: str, cfg: llm.OpenAI) -> Source:
    """The named endpoint of `evaluate.endpoints`."""

    @contextlib.contextmanager
    def open() -> Iterator[Chat]:
        with llm.open(cfg, f"evaluate.endpoints.{name}") as teacher:
            yield Hosted(teacher)
            # What is paid now, not what was: a rerun costs nothing.
            progress.step(1, 1, name, cost_usd=teacher.usage.cost_usd)

    return Source(open, cfg.concurrency)
