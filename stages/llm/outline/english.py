"""The little grammar that turns headings and table headers into questions."""

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SMALL = _words(
    """
    a about an and are at be by did do does for from how i in into is it its my no not of on or
    that the them these they this to was were what when where which who why with yet you your
    """
)
"""Words that say nothing about a subject."""
REFERRING = _words(
    """
    Also And Besides Both But Either He Here However Instead It Neither Otherwise She So Such
    That Then There Therefore These They This Those Thus
    """
)
"""First words of a sentence that needs the one before it."""
IMPERATIVES = _words(
    """
    add adjust allow apply ask avoid begin bring build cancel change check choose clean compare
    compose configure connect convert copy crawl create customise customize cut debug define
    delete deploy describe disable download edit enable end evaluate exclude explain export find
    fix follow generate get give go import include increase index inspect install invoke join
    keep launch let limit list load look make measure merge move name open override pass pin
    prepare print publish pull push put raise read reduce remove rename repeat replace rerun
    reset restart restore resume return review run save search see select send serve set share
    show skip specify split start stop store swap sweep switch take tell test train transform
    try tune turn undo uninstall update upgrade upload use validate verify view wait watch work
    write
    """
)
"""Verbs that begin a heading such as "Change the port"."""
VERBS = _words(
    """
    accepts adds allows answers applies asks begins brings builds carries changes checks chooses
    compares composes contains controls converts copies costs counts crawls creates cuts decides
    defines deletes describes differs does downloads drops ends evaluates expects exports
    fetches finds follows gives goes has holds imports includes keeps launches leaves lets
    limits lists loads logs looks makes means merges moves names needs opens prints promises
    proves provides puts reads receives records removes renders replaces reports requires reruns
    resolves restores returns runs saves says sends serves sets shows skips speaks splits starts
    stops stores supports takes tells trains tunes turns uses waits works writes
    """
)
"""Verbs in the third person that no noun is mistaken for too often."""
_AUXILIARIES = {"is", "are", "was", "were", "can", "may", "must", "will", "should", "cannot"}
_SUBORDINATE = {"that", "which", "who", "when", "while", "if", "because", "what", "where", "how"}


def direct(clause: str) -> str:
    """An indirect question as a direct one, where its grammar is plain enough to turn around."""
    words = clause.split(" ")
    asking, rest = words[0], words[1:]
    turned = None
    if asking in {"what", "how", "why", "where", "which", "when", "who"} and rest:
        place = next((n for n, word in enumerate(rest) if word in _AUXILIARIES), None)
        verb = rest[0] in VERBS or rest[0] in _AUXILIARIES
        if (verb or rest[0] == "happens") and asking in {"what", "who"}:
            turned = clause  # it asks for the subject itself
        elif asking == "which" and place is not None and place <= 3:
            named = any(re.match(r"[A-Z`]|(?:a|an|the|each|every)$", word) for word in rest[:place])
            turned = None if named else clause
        elif asking not in {"which"} and place and _is_subject(rest[:place]):
            subject, tail = rest[:place], rest[place + 1 :]
            auxiliary = "can" if rest[place] == "cannot" else rest[place]
            denial = ["not"] if rest[place] == "cannot" else []
            turned = " ".join([asking, auxiliary, *subject, *denial, *tail])
        elif asking in {"what", "how", "why", "where"}:
            place = next((n for n, word in enumerate(rest) if word in VERBS), None)
            singular = place and not (place == 1 and rest[0] in {"much", "many", "long"})
            if place and singular and _is_subject(rest[:place]) and place <= 3:
                turned = " ".join(
                    [asking, "does", *rest[:place], infinitive(rest[place]), *rest[place + 1 :]]
                )
    if turned is None:
        return f"Can you say {clause}?"
    return f"{turned[0].upper()}{turned[1:]}?"


def _is_subject(words: Sequence[str]) -> bool:
    opens = re.match(r"(?:a|an|the|each|every|all|your|one)$|[A-Z`]|\w+[._]\w", words[0])
    plural = len(words) <= 2 and words[-1].endswith("s")
    return bool(opens or plural) and not _SUBORDINATE & set(words)


def infinitive(verb: str) -> str:
    """The infinitive of a verb in the third person."""
    if verb in {"does", "goes"}:
        return verb[:-2]
    if verb == "has":
        return "have"
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb[:-2] if re.search(r"(?:ss|sh|ch|x|z)es$", verb) else verb[:-1]


def asks(title: str) -> bool:
    return re.match(r"(?i)(what|how|why|where|which|when|who)\b", title) is not None


def inside(title: str) -> str:
    """A heading in brackets within a question."""
    return title[0].lower() + title[1:] if asks(title) else title


def is_imperative(title: str) -> bool:
    words = title.split(" ")
    return (
        len(words) > 1 and words[0].lower() in IMPERATIVES and words[1] not in {"and", "or", "of"}
    )


def lowered(title: str, text: str) -> str:
    """A heading inside a sentence: its first letter small, unless it begins with a name."""
    first = title.split(" ")[0]
    if not first.isalpha() or first[1:] != first[1:].lower():
        return title
    titled = any(word[:1].isupper() for word in title.split(" ")[1:])  # Every Word Like This
    known = re.search(rf"(?<![\w`/.-]){first.lower()}(?![\w`/-])", text)
    common = " " in title and (first.endswith("ing") or title.split(" ")[1] == "of")
    small = first.lower() in SMALL or (not titled and (known or common))
    return title[0].lower() + title[1:] if small else title


def common(term: str, definition: str, text: str) -> str:
    """A term of a glossary as it is written inside a sentence."""
    words = term.split(" ")
    if any(word[1:] != word[1:].lower() or not word.isalpha() for word in words):
        return term
    if any(word[0].isupper() for word in words[1:]):
        return term
    generic = re.match(r"(?:A|An|One|Any|Every)\b", definition) or len(words) > 1
    return term[0].lower() + term[1:] if generic else lowered(term, text)
