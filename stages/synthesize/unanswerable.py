"""Questions that the documents leave open: about names that nothing in them has."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from stages.answer.prompt import NOT_FOUND
from stages.core.records import identify
from stages.synthesize.facts import Fact
from stages.synthesize.tasks import share

_NAME = re.compile(r"`([A-Za-z_]\w*(?:[._][A-Za-z0-9]+)+)`")


ENDINGS = (
    *("backend", "budget", "cutoff", "encoding", "fallback", "interval", "mirror", "policy"),
    *("prefix", "quota", "region", "schedule", "signature", "strategy", "threads", "warmup"),
)
"""What an invented name may end in."""


def invented(
    facts: Sequence[Fact], texts: Collection[str], fraction: float, seed: int
) -> list[Fact]:
    """For about that fraction of the facts on a name: the same question about an invented one.

    The name is one of the documents' own with another last part, so that it looks like any of
    them, and stands in no text. A smaller fraction chooses among those of a larger.
    """
    made = []
    for fact in share(
        facts, fraction, seed, lambda f: ["invented", f.document_id, f.written.forms[0]]
    ):
        name = _name(fact)
        other = name and _other(name, texts, seed)
        if name and other:
            made.append(_about(fact, name, other))
    return made


def _name(fact: Fact) -> str | None:
    """The dotted or snake-cased name that every wording of the question is about."""
    found = _NAME.findall(fact.written.forms[0])
    if len(found) != 1 or fact.written.history:
        return None
    name = str(found[0])
    return name if all(_whole(name).search(form) for form in fact.written.forms) else None


def _whole(name: str) -> re.Pattern[str]:
    """The name, and not as a part of a longer one."""
    return re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w]|\.\w)")


def _other(name: str, texts: Collection[str], seed: int) -> str | None:
    stem = name[: name.rindex(re.split(r"[._]", name)[-1])]
    for ending in sorted(ENDINGS, key=lambda ending: identify(seed, name, ending)):
        made = f"{stem}{ending}"
        if not any(made in text for text in texts):
            return made
    return None


def _about(fact: Fact, name: str, other: str) -> Fact:
    written = fact.written.model_copy(
        update={
            "kind": "unanswerable",
            "forms": tuple(_whole(name).sub(other, form) for form in fact.written.forms),
            "answer": NOT_FOUND,
            "evidence": (),
        }
    )
    return replace(fact, id=identify(fact.id, other), written=written, evidence=())
