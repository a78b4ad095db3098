"""What was measured, in words and as one HTML page that needs nothing else."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.core import model
from stages.core.records import Answer, Example
from stages.evaluate.verdict import TRACK_MEANING, Scores


def describe(cfg: Any) -> str:
    """Which base model the systems stand on, in one sentence."""
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


def render(
    judged: dict[str, Any],
    metrics: dict[str, Any],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    scores: Scores,
) -> str:
    """The report as HTML: table, bars, and the answers in which tuned and base differ most."""
    environment = Environment(
        loader=PackageLoader("stages.evaluate", "."), autoescape=True, undefined=StrictUndefined
    )
    by_key = {(row.system, row.example_id): row for row in answers}
    pairs = [
        {
            "example": example,
            "gain": scores["tuned", example.id]["rougeL_f1"]
            - scores["base", example.id]["rougeL_f1"],
            "base": by_key["base", example.id],
            "tuned": by_key["tuned", example.id],
        }
        for example in examples
        if ("tuned", example.id) in scores and ("base", example.id) in scores
    ]
    pairs.sort(key=lambda pair: (-pair["gain"], pair["example"].id))  # type: ignore[operator,attr-defined]
    return environment.get_template("report.html.j2").render(
        judged=judged,
        tracks=metrics["tracks"],
        meaning=TRACK_MEANING,
        gains=pairs[:10],
        losses=[pair for pair in pairs[:-11:-1] if pair["gain"] < 0],  # type: ignore[operator]
    )
