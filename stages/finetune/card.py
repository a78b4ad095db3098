"""The model card: what a model was made of, in the words of the Hugging Face hub's cards."""

from collections.abc import Mapping
from typing import Any

import yaml

from stages.core import model as base
from stages.finetune import launching
from stages.finetune.lineage import Lineage
from stages.finetune.settings import Config, CptThenSft, Dpo, Zero

SHOWN_PAGES = 10


def render(
    cfg: Config,
    model: base.Config,
    history: Lineage,
    given: Mapping[str, str],
    metrics: Mapping[str, float],
    adapter: str | None,
    num_processes: int = 0,
) -> str:
    """The text of README.md: equal for equal runs, and without a path of this machine.

    `num_processes` is how many trained, as they say; 0 takes what the settings ask for.
    """
    head = yaml.safe_dump(front(model, cfg), sort_keys=True).strip()
    paragraphs = [
        f"---\n{head}\n---\n\n# Tuned model",
        f"The base is {named(model)}. It was tuned by the recipe `{cfg.kind}` with Axolotl, on "
        f"questions and answers about {len(history.documents)} documents.",
        "Whether the tuning helped is said in [the verdict](../evaluate/verdict.json) and shown in "
        "[the report](../evaluate/report.html), which compare it with the base and with search.",
        licence(model),
        "## Weights\n\n"
        + table(
            ("what", "where"),
            [
                ("merged model", "`model/`"),
                *([("adapter", f"`adapter/`, digest `{adapter}`")] if adapter else []),
                ("YAML of Axolotl", "`axolotl*.yaml`"),
                ("curves", "`curve.csv`"),
                ("documents trained on", "`lineage.json`"),
            ],
        ),
        "## Recipe\n\n" + table(("setting", "value"), settings(cfg, model, num_processes)),
        *figures(metrics),
        "## Data\n\n" + table(("file", "SHA-256"), [(n, f"`{d}`") for n, d in given.items()]),
        pages(history),
    ]
    return "\n\n".join(paragraphs) + "\n"


def front(model: base.Config, cfg: Config) -> dict[str, Any]:
    """The card's head, which the hub reads."""
    made: dict[str, Any] = {
        "library_name": "peft" if cfg.adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["docent", cfg.kind],
    }
    if isinstance(model, base.Hub):
        made["base_model"] = model.id
    if isinstance(model, base.Pretrained) and model.license:
        made["license"] = model.license
    return made


def named(model: base.Config) -> str:
    match model:
        case base.Scratch():
            return (
                f"a Llama of {model.num_layers} layers and width {model.hidden_size}, made from "
                "the same documents and of no use elsewhere"
            )
        case base.Hub():
            return f"[{model.id}](https://huggingface.co/{model.id}) at revision `{model.revision}`"
        case _:
            return f"the local folder `{model.path}`"


def licence(model: base.Config) -> str:
    rest = "The documents' own terms hold for what it learned from them."
    if isinstance(model, base.Pretrained):
        if model.license:
            return f"The base's licence is `{model.license}`, and holds for this model too. {rest}"
        return f"The base's licence is not known here; see its own card. {rest}"
    return f"The base has no licence of its own. {rest}"


def figures(metrics: Mapping[str, float]) -> list[str]:
    """The metrics, by what they measure."""
    kinds: dict[str, list[tuple[str, str]]] = {title: [] for title in MEASURED}
    for name, value in sorted(metrics.items()):
        if "num_" in name:
            kinds["Counts"].append((name, f"{value:.0f}"))
        else:
            kind = "Preferences" if name.startswith("dpo_") else "Losses"
            kinds[kind].append((name, f"{value:.4g}"))
    return [
        f"## {title}\n\n{MEASURED[title]}\n\n" + table(("figure", "value"), rows)
        for title, rows in kinds.items()
        if rows
    ]


MEASURED = {
    "Losses": "Means over the last tenth of the steps, in nats per token.",
    "Preferences": "Means over the last tenth of the steps: how often the right answer was the "
    "likelier one, by how much, and the loss of that comparison.",
    "Counts": "Weights, steps, and the examples that were learned or left out as too long.",
}


def settings(cfg: Config, model: base.Config, num_processes: int) -> list[tuple[str, str]]:
    rows: list[tuple[str, Any]] = [
        ("recipe", cfg.kind),
        ("context in tokens", model.context_tokens),
        ("learning rate", cfg.learning_rate),
        ("epochs", cfg.num_epochs),
        ("examples a step", examples_per_step(cfg, num_processes)),
    ]
    if isinstance(cfg, CptThenSft):
        rows += [("pretraining epochs", cfg.cpt_epochs)]
        rows += [("pretraining learning rate", cfg.cpt_learning_rate)]
    if isinstance(cfg, Dpo):
        rows += [("preference epochs", cfg.dpo_epochs), ("beta", cfg.dpo_beta)]
        rows += [("preference learning rate", cfg.dpo_learning_rate), ("start", cfg.start)]
    if cfg.adapter:
        rows += [("adapter", cfg.adapter), ("rank", getattr(cfg, "lora_r", None))]
        rows += [("alpha", getattr(cfg, "lora_alpha", None))]
    if isinstance(cfg.deepspeed, Zero):
        rows.append(("DeepSpeed", f"ZeRO-{cfg.deepspeed.stage}"))
    return [(name, str(value)) for name, value in [*rows, ("seed", cfg.seed)]]


def examples_per_step(cfg: Config, num_processes: int) -> int:
    asked = cfg.num_processes * launching.num_nodes(cfg.launcher)
    return cfg.micro_batch_size * cfg.gradient_accumulation_steps * (num_processes or asked)


def pages(history: Lineage) -> str:
    shown = [f"- {page.url}" for page in history.documents[:SHOWN_PAGES]]
    if more := len(history.documents) - len(shown):
        shown.append(f"- and {more} more, in `lineage.json`")
    return "## Documents\n\n" + "\n".join(shown)


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
