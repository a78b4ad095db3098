"""An answer and its evidence to faults: what the answer says that the evidence does not say.

Rules decide, and no model: equal texts have equal faults. Each kind of fault is one rule.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from stages.synthesize.grounding import claims, negation
from stages.synthesize.grounding.case import Case
from stages.synthesize.grounding.reading import read

RULES: Mapping[str, Callable[[Case], Iterator[str]]] = MappingProxyType(
    {
        "numbers": claims.numbers,
        "names": claims.names,
        "code": claims.code,
        "negations": negation.negations,
        "opposites": negation.opposed,
        "support": claims.unsupported,
    }
)
"""All that is checked, by name."""


def faults(
    question: str, answer: str, evidence: Sequence[str], context: Sequence[str] = ()
) -> list[str]:
    """Why the evidence does not support the answer, in the order of `RULES`; empty where it does.

    Question and `context`, such as the page's title and headings, may name what the evidence takes
    for granted: their names and identifiers count as known. Their numbers and words do not.
    """
    case = Case(
        read(question), read(answer), read("\n\n".join(evidence)), read("\n\n".join(context))
    )
    return [fault for rule in RULES.values() for fault in rule(case)]
