"""The one door: `python -m stages <verb>`."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from stages import console, pipeline, promotion
from stages.core import config, progress, store, tracking
from stages.core.errors import PipelineError
from stages.core.records import Message, System, Track

if TYPE_CHECKING:  # a stage's process imports no more than its stage
    from stages.answer import Response
    from stages.answer.endpoint import Chat
    from stages.answer.retrieval import Search

ENDPOINT = Path("data/deploy/endpoint.json")
INDEX = Path("data/index")


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or 1 after a user's mistake, which is told in one line."""
    parsed = parser(*arguments[:1]).parse_args(arguments)
    verb: Callable[[argparse.Namespace], None] = parsed.verb
    try:
        verb(parsed)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; running again goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def parser(first: str = "") -> argparse.ArgumentParser:
    """All verbs; of the stages only `first` knows its inputs, so that no other is imported."""
    top = argparse.ArgumentParser(
        prog="python -m stages",
        description="Docent: documents in, a chatbot with citations and an honest verdict out.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(name: str, verb: Callable[[argparse.Namespace], None], help: str, **more: Any) -> Any:
        made = verbs.add_parser(name, help=help, description=help, **more)
        made.set_defaults(verb=verb)
        return made

    params = add("params", compose_params, "compose conf/ into params.yaml")
    params.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")

    run = add(
        "run",
        run_pipeline,
        "validate everything, run what changed, show the result",
        epilog="example: python -m stages run split=markdown finetune.learning_rate=1e-3",
    )
    run.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    run.add_argument("--force", action="store_true", help="run every stage, changed or not")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands that would train, as finetune.launcher has them; run nothing",
    )

    refresh = add(
        "refresh",
        refresh_sources,
        "fetch the sources anew, say what changed, and write data/inputs/snapshot.json",
        epilog="example: python -m stages refresh source=web source.url=https://docs.example.org/",
    )
    refresh.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    refresh.add_argument(
        "--missing", action="store_true", help="only what the snapshot does not hold as it is set"
    )
    refresh.add_argument("--json", action="store_true", help="print what changed as JSON")

    # Every word after `sweep` is Hydra's; argparse is not to judge them.
    sweep = add(
        "sweep",
        run_sweep,
        "run the DAG once per point of a Hydra multirun",
        epilog="example: python -m stages sweep -m finetune.learning_rate=1e-3,3e-3",
    )
    sweep.add_argument("-m", "--multirun", action="store_true", help="Hydra's flag; always on")
    sweep.add_argument("--json", action="store_true", help="print the points as JSON")
    sweep.add_argument("overrides", nargs="+", metavar="key=a,b", help="Hydra multirun overrides")

    search = add("search", search_index, "show the chunks that a question finds")
    search.add_argument("question")
    search.add_argument("--k", type=int, default=5, help="how many chunks (default 5)")
    methods = ("lexical", "dense", "hybrid")
    search.add_argument("--method", choices=methods, help="in place of answer.search.method")
    search.add_argument("--source", action="append", help="keep to this source; may be repeated")
    search.add_argument("--json", action="store_true", help="print the hits as JSON")

    export = add("export", export_index, "write the index as one JSON file, for serverless use")
    export.add_argument("file", type=Path, help="JSON")

    ask = add("ask", ask_once, "answer one question with its sources (needs `up`, but for quote)")
    ask.add_argument("question")
    _add_system(ask)
    ask.add_argument("--json", action="store_true", help="print the answer as JSON")

    chat = add("chat", chat_loop, "ask in the terminal; starts a server of its own if none is up")
    _add_system(chat)

    up = add("up", server_up, "start the server that data/deploy/endpoint.json describes")
    up.add_argument("--port", type=int, default=8080, help="loopback port (default 8080)")
    add("down", server_down, "stop it")
    status = add("status", server_status, "say whether it runs, and where")
    status.add_argument("--json", action="store_true", help="print it as JSON")

    plan = add(
        "plan",
        plan_calls,
        "forecast the teacher's calls, tokens and cost, before any is made",
        epilog="example: python -m stages plan teacher=openai synthesize.shares.multihop=0.2",
    )
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    plan.add_argument("--json", action="store_true", help="print it as JSON")

    share = add("ledger", share_ledger, "share the replies that were paid for, with a team or a CI")
    share.add_argument("what", choices=["export", "import"])
    share.add_argument("file", type=Path, help="JSONL, a call on each line")

    review = add(
        "review",
        review_examples,
        "review the examples in a spreadsheet: export, fill in `decision`, import",
    )
    review.add_argument("what", choices=["export", "import"])
    review.add_argument("file", type=Path, help="CSV")

    bundle = add(
        "bundle",
        take_bundle_back,
        "take back what was trained in a bundle (finetune/launcher=bundle)",
    )
    bundle.add_argument("what", choices=["import"])
    bundle.add_argument("path", type=Path, help="the bundle's folder after train.sh, or a tar")

    tuning = add("tuning", cancel_tuning, "cancel the hosted trainings (finetune/launcher=openai)")
    tuning.add_argument("what", choices=["cancel"])
    tuning.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")

    freeze = add(
        "freeze", freeze_testset, "commit today's test questions: they stay, and untrained"
    )
    freeze.add_argument("--no-commit", action="store_true", help="write the file, commit nothing")

    compare = add(
        "compare",
        compare_runs,
        "compare two runs on the questions that both answered, with intervals",
        epilog="example: python -m stages compare main   (the workspace against the branch main)",
    )
    compare.add_argument("first", metavar="REV", help="git revision or DVC experiment")
    compare.add_argument("second", metavar="REV", nargs="?", help="default: the workspace")
    compare.add_argument("--metric", default="rougeL_f1", help="figure (default rougeL_f1)")
    compare.add_argument("--json", action="store_true", help="print it as JSON")

    for stage in pipeline.STAGES:
        made = add(
            stage,
            run_stage,
            f"run the stage {stage} alone (`dvc repro` does this)",
            epilog="Overrides are Hydra's, over conf/; with none, --params is read.",
        )
        made.set_defaults(stage=stage)
        made.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
        made.add_argument("--params", type=Path, default=Path("params.yaml"))
        made.add_argument("--out", type=Path, required=True)
        for name, kind in pipeline.signature(stage).inputs.items() if stage == first else ():
            several: dict[str, Any] = {"nargs": "*", "default": []}
            one = {"required": kind is Path}
            several_or_one = several if kind == tuple[Path, ...] else one
            made.add_argument(f"--{name}", type=Path, **several_or_one)
    return top


def _add_system(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--system",
        choices=[system for system in get_args(System) if system != "base_few_shot"],
        default="tuned",
        help="who answers (default tuned)",
    )


# --- stages ------------------------------------------------------------------------------------


def run_stage(parsed: argparse.Namespace) -> None:
    """Load the config, lock the stage, run it, log it, write the manifest last."""
    stage: str = parsed.stage
    asked = pipeline.signature(stage)
    params = pipeline.compose(parsed.overrides) if parsed.overrides else config.read(parsed.params)
    values = asked.load(params, "conf" if parsed.overrides else str(parsed.params))
    tracked = config.load(params, "tracking", tracking.Config, str(parsed.params))
    sections = {name: params[name] for name in asked.sections}
    given = _inputs(parsed, asked.inputs)
    if stage == "finetune":
        promotion.fetch_adapter(tracked, getattr(values["cfg"], "init_adapter", None))
    if stage == "evaluate" and (rival := promotion.champion(tracked, given)):
        given["champion"] = rival
    inputs = _flat(given)
    signal.signal(signal.SIGTERM, _terminated)
    with store.lock(stage), console.Display(stage) as display:
        recorded = (
            tracking.StageRun(tracked, stage, sections, inputs)
            if isinstance(tracked, tracking.Mlflow)
            else None
        )
        progress.begin(stage, display.hear, *([recorded.hear] if recorded else []))
        progress.note("started")
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        metrics: dict[str, float] = {}
        try:
            metrics = asked.run(**values, **given, out=parsed.out)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            upstream = pipeline.metrics(parsed.out.parent, before=stage)
            if recorded and (failure := recorded.end(status, metrics, upstream, parsed.out)):
                display.say(failure)
        store.write_manifest(parsed.out, stage, sections, inputs, metrics)
        if stage == "finetune" and recorded:
            for line in promotion.tuned(tracked, recorded.id, parsed.out):
                display.say(line)
        if stage == "evaluate" and recorded:
            for line in promotion.register(tracked, recorded.id, given, parsed.out):
                display.say(line)
        progress.step(1, 1, "done")
        display.end(metrics)


def _inputs(parsed: argparse.Namespace, kinds: dict[str, Any]) -> dict[str, Any]:
    """The inputs that were given, each of which exists."""
    given = {name: getattr(parsed, name) for name in kinds if getattr(parsed, name)}
    for name, value in given.items():
        for path in value if isinstance(value, list) else [value]:
            if not path.exists():
                raise PipelineError(
                    f"--{name}: {path}: no such file or folder; `dvc repro` makes it"
                )
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _flat(given: dict[str, Any]) -> dict[str, Path]:
    """Each input by a name of its own: `rejects` of several stages as `rejects.crawl` and so on."""
    flat: dict[str, Path] = {}
    for name, value in given.items():
        if isinstance(value, tuple):
            flat |= {f"{name}.{path.parent.name}": path for path in value}
        else:
            flat[name] = value
    return flat


def _terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# --- the pipeline ------------------------------------------------------------------------------


def compose_params(parsed: argparse.Namespace) -> None:
    # Under `dvc exp run` DVC has composed params.yaml with its overrides already.
    if "DVC_EXP_NAME" in os.environ and pipeline.PARAMS.exists():
        return
    params = pipeline.compose(parsed.overrides)
    pipeline.check(params)
    pipeline.write_params(params)


def refresh_sources(parsed: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, _terminated)
    with store.lock("refresh"), console.Display("refresh") as display:
        progress.begin("refresh", display.hear)
        changes = pipeline.refresh(parsed.overrides, parsed.missing)
    if parsed.json:
        print(json.dumps([change.__dict__ for change in changes], ensure_ascii=False))
        return
    if not changes:
        print("nothing to fetch: the snapshot is whole, or the stage reads a served folder itself")
    for change in changes:
        for word, urls in (("new", change.new), ("changed", change.changed), ("gone", change.gone)):
            for url in urls:
                print(f"{word:<8} {url}")


def run_pipeline(parsed: argparse.Namespace) -> None:
    if parsed.dry_run:
        params = pipeline.compose(parsed.overrides)
        pipeline.check(params)
        show_commands(params)
        return
    spent = pipeline.run(parsed.overrides, parsed.force)
    metrics = store.read_json(Path("data/evaluate/metrics.json"))
    if parsed.json:
        stages = {stage: row and row.__dict__ for stage, row in spent.items()}
        print(json.dumps({"stages": stages, "metrics": metrics}))
        return
    _show_metrics(metrics)
    rows = [
        (stage, f"{row.seconds:.1f}", f"{row.cost_usd:.4f}")
        if row
        else (stage, "restored", "0.0000")
        for stage, row in spent.items()
    ]
    took = [row for row in spent.values() if row]
    total = [sum(row.seconds for row in took), sum(row.cost_usd for row in took)]
    rows.append(("together", f"{total[0]:.1f}", f"{total[1]:.4f}"))
    console.table("Time and cost per stage", ("stage", "seconds", "USD"), rows)
    judged = store.read_json(Path("data/evaluate/verdict.json"))
    for track in filter(judged["tracks"].get, get_args(Track)):
        print(f"Verdict on {track} (ROUGE-L F1):")
        for comparison in judged["tracks"][track]["comparisons"]:
            print(f"  {comparison['sentence']}")
    for part in ("forgetting", "champion", "gate"):
        if sentence := judged.get(part, {}).get("sentence"):
            print(sentence)
    print(f"\n{judged['base']}\n")
    print("Next: `make chat` asks the bot, `make mlflow` opens the runs, data/evaluate/report.html")
    print("is the report, and `python -m stages sweep -m finetune.learning_rate=1e-3,3e-3` sweeps.")


def _show_metrics(metrics: dict[str, Any]) -> None:
    names = ("rouge1_f1", "rouge2_f1", "rougeL_f1", "rougeLsum_f1")
    for track in filter(metrics["tracks"].get, get_args(Track)):
        systems = metrics["tracks"][track]
        rows = []
        for system in sorted(systems, key=_rank):
            figures = systems[system]
            values = [f"{figures[name]:.3f}" for name in names]
            rows.append((system, *values, f"{figures['num_questions']}"))
        console.table(f"{track}: ROUGE F1", ("system", *(n[:-3] for n in names), "questions"), rows)


def _rank(system: str) -> int:
    """Ours first, in their order: JSON has sorted them by name."""
    ours: tuple[str, ...] = get_args(System)
    return ours.index(system) if system in ours else len(ours)


def run_sweep(parsed: argparse.Namespace) -> None:
    points = pipeline.sweep(parsed.overrides)
    if parsed.json:
        print(json.dumps([point.__dict__ for point in points]))
    else:
        rows = []
        for point in points:
            tracks = point.metrics.get("tracks", {})
            figures = [
                f"{systems['tuned']['rougeL_f1']:.3f}" if "tuned" in systems else "-"
                for systems in (tracks.get("same_fact", {}), tracks.get("held_out", {}))
            ]
            named = point.failure or point.experiment
            rows.append((point.overrides, *figures, point.testset[:8] or "-", named))
        console.table(
            "Tuned, ROUGE-L F1",
            ("point", "same_fact", "held_out", "test set", "experiment"),
            rows,
        )
        if len({point.testset for point in points if not point.failure}) > 1:
            print(
                "The points answered different test sets: their figures do not compare. "
                "`python -m stages freeze` keeps one for all."
            )
        print("`dvc exp apply NAME` makes a point yours; `make mlflow` shows them side by side.")
    if failed := sum(bool(point.failure) for point in points):
        raise PipelineError(f"sweep: {failed} of {len(points)} points failed (see above)")


# --- the teacher and its examples --------------------------------------------------------------


def plan_calls(parsed: argparse.Namespace) -> None:
    found = pipeline.plan(parsed.overrides)
    if parsed.json:
        print(json.dumps(found.__dict__))
        return
    print(
        f"{found.calls} calls to make, {found.cached} are in the ledger: about "
        f"{found.prompt_tokens:,.0f} prompt and {found.completion_tokens:,.0f} completion tokens, "
        f"{found.cost_usd:.4f} USD"
        + ("" if found.worst_usd is None else f", at most {found.worst_usd:.4f}")
    )


def share_ledger(parsed: argparse.Namespace) -> None:
    from stages import llm

    if parsed.what == "export":
        print(f"{parsed.file}: {llm.export_ledger(parsed.file)} calls")
    else:
        found = llm.import_ledger(parsed.file)
        print(f"{found.new} new calls of {found.new + found.known}, the others were there")


def review_examples(parsed: argparse.Namespace) -> None:
    from stages.synthesize import review
    from stages.synthesize.examples import Review

    data, decisions = Path("data/synthesize"), Path("data/inputs/review.jsonl")
    parts = pipeline.examples(data)
    if parsed.what == "export":
        made = store.read(decisions, Review)
        count = review.export(parts, parsed.file, made, pipeline.addresses())
        print(f"{parsed.file}: {count} examples; fill in `decision`: accept, edit or reject")
    else:
        known = {example.id for part in parts.values() for example in part}
        found = review.import_(parsed.file, decisions, known)
        print(
            f"{decisions}: {found.num_changed} decisions are new; of the file's, "
            f"{found.num_accepted} accept, {found.num_edited} edit, {found.num_rejected} reject "
            f"and {found.num_undecided} are open. `python -m stages run` applies them"
        )


# --- trainings elsewhere -----------------------------------------------------------------------


def take_bundle_back(parsed: argparse.Namespace) -> None:
    from stages.finetune import bundle

    print(bundle.take_back(parsed.path))


def cancel_tuning(parsed: argparse.Namespace) -> None:
    from stages import finetune
    from stages.finetune import hosted, launching

    params = (
        pipeline.compose(parsed.overrides) if parsed.overrides else config.read(Path("params.yaml"))
    )
    launcher = config.load(params, "finetune", finetune.Config).launcher
    if not isinstance(launcher, launching.OpenAI):
        raise PipelineError(
            f"finetune.launcher.kind: {launcher.kind!r}: only a hosted training is cancelled here; "
            "any other ends with Ctrl-C"
        )
    ended = hosted.cancel(launcher)
    print(f"cancelled: {', '.join(ended)}" if ended else "no hosted training goes on")


def show_commands(params: dict[str, Any]) -> None:
    from stages import finetune
    from stages.core import model as base

    cfg = config.load(params, "finetune", finetune.Config, "conf")
    model = config.load(params, "model", base.Config, "conf")
    print(finetune.commands(cfg, model, Path("data/finetune")), end="")


# --- test sets and runs ------------------------------------------------------------------------


def freeze_testset(parsed: argparse.Namespace) -> None:
    print(pipeline.freeze(commit=not parsed.no_commit))


def compare_runs(parsed: argparse.Namespace) -> None:
    found = pipeline.compare(parsed.first, parsed.second, parsed.metric)
    if parsed.json:
        print(json.dumps([row.__dict__ for row in found]))
        return
    for row in found:
        print(f"{row.track}: {row.sentence}")


# --- asking ------------------------------------------------------------------------------------


def search_index(parsed: argparse.Namespace) -> None:
    from stages.answer.retrieval import Index

    with Index.open(INDEX, _search(parsed.method, parsed.source)) as index:
        hits = index.search(parsed.question, parsed.k)
    if parsed.json:
        rows = [{"score": hit.score, **hit.chunk.model_dump()} for hit in hits]
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not hits:
        print("nothing found")
    for hit in hits:
        print(f"{hit.score:6.2f}  {' > '.join(hit.chunk.heading_path)}")
        print(f"        {hit.chunk.url}")
        print(f"        {' '.join(hit.chunk.text.split())[:160]}")


def export_index(parsed: argparse.Namespace) -> None:
    from stages.answer.export import export

    num_chunks = export(INDEX, parsed.file)
    megabytes = parsed.file.stat().st_size / 1e6
    print(f"{parsed.file}: {num_chunks} chunks with their terms and vectors, {megabytes:.1f} MB")


def _search(method: str | None, sources: list[str] | None) -> "Search":
    """The search of params.yaml, with what the command line says in its place."""
    from stages import answer

    cfg = config.load(config.read(Path("params.yaml")), "answer", answer.Config)
    configured: Search = cfg.search
    changes = {"method": method, "sources": tuple(sources or ())}
    return configured.model_copy(update={key: value for key, value in changes.items() if value})


def ask_once(parsed: argparse.Namespace) -> None:
    from stages import answer
    from stages.answer.retrieval import Index

    cfg = config.load(config.read(Path("params.yaml")), "answer", answer.Config)
    turns = [Message(role="user", content=parsed.question)]
    with Index.open(INDEX, cfg.search) as index, _server(parsed.system, private=False) as server:
        said = answer.ask(parsed.system, turns, index, server, cfg)
    if parsed.json:
        citations = [citation.model_dump() for citation in said.citations]
        print(json.dumps({"answer": said.text, "citations": citations}, ensure_ascii=False))
    else:
        _show_answer(said)


def chat_loop(parsed: argparse.Namespace) -> None:
    from stages import answer
    from stages.answer.retrieval import Index

    cfg = config.load(config.read(Path("params.yaml")), "answer", answer.Config)
    with Index.open(INDEX, cfg.search) as index, _server(parsed.system, private=True) as server:
        print(f"{parsed.system} answers; an empty line starts a new conversation, Ctrl-D ends")
        turns: list[Message] = []
        while True:
            try:
                question = input("> ").strip()
            except EOFError:
                print()
                return
            if not question:
                turns = []
                continue
            turns.append(Message(role="user", content=question))
            said = answer.ask(parsed.system, turns, index, server, cfg)
            turns.append(Message(role="assistant", content=said.text))
            _show_answer(said)


@contextlib.contextmanager
def _server(system: str, private: bool) -> "Iterator[Chat | None]":
    """The server that is up, or a private one for this command; none for quoting."""
    from stages.answer import endpoint

    if system == "quote":
        yield None
    elif endpoint.is_hosted(ENDPOINT):
        with endpoint.start(ENDPOINT) as models:
            yield models
    elif endpoint.status()["running"] or not private:
        with endpoint.connect(ENDPOINT) as server:
            yield server
    else:
        print("loading the model…", file=sys.stderr)
        with endpoint.start(ENDPOINT) as server:
            yield server


def _show_answer(said: "Response") -> None:
    print(said.text)
    for url in dict.fromkeys(citation.url for citation in said.citations):
        print(f"  {url}")


def server_up(parsed: argparse.Namespace) -> None:
    from stages.answer import endpoint

    with console.Display("up") as display:
        progress.begin("up", display.hear)
        print(endpoint.up(ENDPOINT, parsed.port))


def server_down(parsed: argparse.Namespace) -> None:
    from stages.answer import endpoint

    print("stopped" if endpoint.down() else "no server was up")


def server_status(parsed: argparse.Namespace) -> None:
    from stages.answer import endpoint

    status = endpoint.status()
    if parsed.json:
        print(json.dumps(status))
    elif not status["running"]:
        print("down; `python -m stages up` starts it")
    else:
        ready = "up" if status["ready"] else "loading"
        stale = "" if status["current"] else ", with models older than data/deploy: restart it"
        print(f"{ready} at {status['url']} ({status['engine']}){stale}; log: {status['log']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
