"""A chunk to facts: what its headings, tables, terms, sentences and code blocks say."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stages.llm.outline.english import (
    IMPERATIVES,
    REFERRING,
    SMALL,
    VERBS,
    asks,
    common,
    direct,
    infinitive,
    inside,
    is_imperative,
    lowered,
)
from stages.llm.outline.markdown import (
    Block,
    Page,
    Section,
    cells_of,
    is_rule,
    plain,
    sections,
    sentences,
)

MAX_ANSWER_WORDS = 40
"""A longer sentence is no short answer, and is left out."""

# How each sort of fact is asked for. A form keeps its place in the row: the caller trains on some
# places and tests on others. Place 0 is the plainest question. No pattern of places 1 to 6 fits a
# question that another place wrote, in any row (tested).
FORMS = {
    "howto": (
        "How do I {x}?",
        "Show me how to {x}.",
        "What are the steps to {x}?",
        "I want to {x}. What should I do?",
        "What is the way to {x}?",
        "Explain to me how I can {x}.",
        "Is there a way to {x}?",
    ),
    "clause": (
        "{question}",
        "Tell me {x}.",
        "Could you explain {x}?",
        "I would like to know {x}.",
        "Do you know {x}?",
        "Please say in one sentence {x}.",
        "Please look up {x}.",
    ),
    "topic": (
        "What should I know about {x}?",
        "Tell me something about {x}.",
        "Could you explain something about {x}?",
        "I would like to know something about {x}.",
        "Do you know anything about {x}?",
        "Please say in one sentence what to know about {x}.",
        "Please look up what is said about {x}.",
    ),
    "question": (
        "{x}",
        "Tell me this: {x}",
        "Could you explain this to me: {x}",
        "I would like to know this: {x}",
        "Do you know the answer: {x}",
        "Please answer in one sentence: {x}",
        "Please look up the answer to this: {x}",
    ),
    "definition": (
        "What does “{x}” mean?",
        "Define “{x}”.",
        "What is meant by “{x}”?",
        "I came across the term “{x}”. What is that?",
        "How is “{x}” defined?",
        "Explain the term “{x}”.",
        "Which definition does “{x}” have?",
    ),
    "code": (
        "Which command do I use to {x}?",
        "Give me the command to {x}.",
        "What do I type to {x}?",
        "I need a command to {x}.",
        "What is the command line to {x}?",
        "With which command can I {x}?",
        "What should I run to {x}?",
    ),
    "follow_up": (
        "And {x}?",
        "Thanks. Now tell me {x}.",
        "Good. Can you also say {x}?",
        "I also need to know {x}.",
        "One more thing: {x}?",
        "Understood. Next, explain {x}.",
        "Then let me ask {x}.",
    ),
}

Kind = Literal["howto", "factual", "definition", "code", "dialogue"]


@dataclass(frozen=True)
class Fact:
    """One thing that the chunk says, asked for in every form; `evidence` stands in it as it is."""

    kind: Kind
    forms: tuple[str, ...]
    answer: str
    evidence: str
    clause: str
    """The question as a part of a sentence, such as `how to start a sweep`."""
    heading: bool = False
    """Whether it is what a heading announces."""
    history: tuple["Fact", ...] = ()


def write(page: Page) -> list[Fact]:
    """The facts of a chunk in reading order, and at most one dialogue; no question twice."""
    facts: dict[str, Fact] = {}
    for section in sections(page):
        announced = list(_announced(section))
        used = {fact.answer for fact in announced}
        for fact in (*announced, *_told(section, used)):
            facts.setdefault(fact.clause.casefold(), fact)
    rows = list(facts.values())
    return rows + _dialogue(rows)


def _dialogue(facts: Sequence[Fact]) -> list[Fact]:
    """Two or three turns along the headings; a lone heading is followed by what stands under it."""
    turns = [fact for fact in facts if fact.heading][:3]
    if len(turns) == 1:
        turns += [f for f in facts if f.kind == "code" and f.answer != turns[0].answer][:1]
    if len(turns) < 2:
        return []
    later = [
        replace(turn, kind="dialogue", forms=_forms("follow_up", x=turn.clause))
        for turn in turns[1:]
    ]
    return [replace(later[-1], history=(turns[0], *later[:-1]))]


def _announced(section: "Section") -> Iterator[Fact]:
    """What the heading asks for and the first sentence under it answers."""
    if not section.titled or not section.blocks or section.blocks[0].kind != "paragraph":
        return
    told = _answer(section, 0)
    if told is None:
        return
    answer, evidence = told
    title, vague = re.sub(r"^(?:Step )?\d+[:.)]\s+", "", section.title), section.qualifier
    if title.endswith("?"):
        forms, clause = _forms("question", x=title), f"the answer to this: {title.rstrip('?')}"
        yield Fact("factual", forms, answer, evidence, clause, heading=True)
    elif how := re.match(r"(?i)how (?:to|do I|can I|do you|do we) (.+)", title):
        yield _howto(how[1] + vague, answer, evidence)
    elif asks(title):
        clause = title[0].lower() + title[1:] + vague
        forms = _forms("clause", x=clause, question=direct(clause))
        yield Fact("factual", forms, answer, evidence, clause, heading=True)
    elif is_imperative(title):
        yield _howto(title[0].lower() + title[1:] + vague, answer, evidence)
    else:
        topic = lowered(title.removeprefix("About "), section.page.text) + vague
        if len(section.path) == 1:
            topic = f"the page “{title}”"
        forms = _forms("topic", x=topic)
        clause = f"what to know about {topic}"
        yield Fact("factual", forms, answer, evidence, clause, heading=True)


def _howto(x: str, answer: str, evidence: str) -> Fact:
    forms = _forms("howto", x=x)
    return Fact("howto", forms, answer, evidence, f"how to {x}", heading=True)


def _told(section: "Section", used: set[str]) -> Iterator[Fact]:
    """What the section says beside the answer to its heading."""
    for place, block in enumerate(section.blocks):
        match block.kind:
            case "table":
                yield from _table(section, block)
            case "item":
                yield from _defined(section, block)
            case "fence":
                yield from _fence(section, place)
            case "paragraph":
                yield from _defined(section, block)
                yield from _signature(section, place)
                yield from (fact for fact in _about(block) if fact.answer not in used)


def _answer(section: "Section", place: int) -> tuple[str, str] | None:
    """The first sentence of a paragraph, with the commands or the short list that it announces."""
    block = section.blocks[place]
    sentence = next(sentences(block.text), "")
    following = section.blocks[place + 1 :]
    text = section.page.text
    if not sentence.endswith(":"):
        return (plain(sentence), sentence) if _stands_alone(sentence) else None
    if sentence != block.text.strip() or not following or not sentence[0].isupper():
        return None
    opening = plain(sentence)[:-1]
    if following[0].kind == "fence":
        commands = _commands(following[0].text)
        if not commands:
            return None
        joint = ", run " if opening.startswith("To ") and not opening.endswith("run") else " "
        answer = f"{opening}{joint}{_in_ticks(commands)}."
        end = following[0].end
    else:
        items = []
        for item in following:
            if item.kind != "item":
                break
            items.append(item)
        if not items:
            return None
        answer = f"{opening}: " + "; ".join(
            plain(re.sub(r"^\s*(?:[-*+]|\d+[.)])\s+", "", item.text)).rstrip(".;") for item in items
        )
        answer += "."
        end = items[-1].end
    return (answer, text[block.start : end]) if _is_short(answer) else None


def _stands_alone(sentence: str) -> bool:
    """Whether a sentence is whole, short and says what it speaks of."""
    words = plain(sentence)
    first = words.split(" ")[0] if words else ""
    return (
        _is_short(words)
        and len(words.split()) >= 3
        and words[-1] in ".!"
        and (words[0].isupper() or words[0] in '`"“(' or words[0].isdigit())
        and first not in REFERRING
    )


# --- tables --------------------------------------------------------------------------------------

_KEYS = {
    *("key", "option", "parameter", "argument", "setting", "field", "name", "flag", "variable"),
    *("column", "attribute", "value"),
}
_NOTHING = {"", "-", "–", "—", "n/a", "none", "`null`", "null"}


def _table(section: "Section", block: "Block") -> Iterator[Fact]:
    rows = [line for line in block.text.splitlines() if line.strip()]
    if len(rows) > 1 and is_rule(rows[1]):
        header, body = cells_of(rows[0]), rows[2:]
    elif section.page.table_header and block.start == 0:
        header, body = cells_of(section.page.table_header), rows
    else:
        return
    if not 2 <= len(header) <= 5:
        return
    heading = section.title if len(section.path) > 1 else ""
    for row in body:
        cells = cells_of(row)
        if len(cells) != len(header) or cells[0] in _NOTHING:
            continue
        subject = _subject(header[0], cells[0], section)
        for column, cell in zip(header[1:], cells[1:], strict=True):
            asked = _asked_of(column, subject, heading)
            said = cell if _is_short(cell) else plain(next(sentences(cell), ""))
            if asked is None or cell in _NOTHING or not said or not _is_short(said):
                continue
            if column.casefold() != "default" and not re.search(r"(?<![:\w])[^\W\d_]{2}", said):
                continue  # a tick, a cross or a figure says little outside of its table
            clause, question = asked
            if column.casefold() == "default":
                said = f"The default of {cells[0]} is {said}."
            forms = _forms("clause", x=clause, question=question)
            yield Fact("factual", forms, said, row.strip(), clause)


def _subject(noun: str, cell: str, section: "Section") -> str:
    """What a row is about: `the command X`."""
    noun = noun.casefold()
    name = cell if re.search(r"^`[^`]+`$|^\d+$", cell) else f"“{cell.rstrip('.')}”"
    if noun in _KEYS and not re.search(r"[._=/-]", cell):
        name += f" ({inside(section.title or section.page.title)})"  # many sections have a `kind`
    names_nothing = noun in {"", "name", "term"} or noun.split(" ")[0] in SMALL
    return name if names_nothing else f"the {noun} {name}"


def _asked_of(column: str, subject: str, heading: str) -> tuple[str, str] | None:
    """A column's header as a clause about the subject and as a question; None: not asked for."""
    column = column.casefold().rstrip("?: ")
    if column in {"", "type", "required", "unit"}:
        return None
    if column == "default":
        if len(heading.split()) > 2:  # a key may have another default in another section
            subject += f" ({inside(heading)})"
        return f"what the default of {subject} is", f"What is the default of {subject}?"
    if column in {"meaning", "what it means"}:
        return f"what {subject} means", f"What does {subject} mean?"
    if column in {"description", "what it is"}:
        return f"what {subject} is", f"What is {subject}?"
    if column in {"purpose", "use", "used for"}:
        return f"what {subject} is for", f"What is {subject} for?"
    if being := re.fullmatch(r"what it is (.*)", column):
        return f"what {subject} is {being[1]}", f"What is {subject} {being[1]}?"
    if does := re.fullmatch(r"what it (\w+s)(?: and (\w+s))?((?: .*)?)", column):
        verbs = [verb for verb in does.groups()[:2] if verb]
        clause = f"what {subject} {' and '.join(verbs)}{does[3]}"
        return clause, f"What does {subject} {' and '.join(map(infinitive, verbs))}{does[3]}?"
    if to := re.fullmatch(r"(when|how|where) to (.*)\bit\b(.*)", column):
        verb = {"when": "should I", "how": "do I", "where": "do I"}[to[1]]
        rest = f"{to[2]}{subject}{to[3]}"
        return f"{to[1]} to {rest}", f"{to[1].capitalize()} {verb} {rest}?"
    clause = re.sub(r"\bit\b", lambda _: subject, column, count=1)  # it may hold a backslash
    if clause == column:
        clause = f"{column} {'for' if ' ' in column else 'of'} {subject}"
    if re.match(r"(what|when|how|where|why|which|who)\b", column):
        return clause, direct(clause)
    several = column.split(" ")[0].endswith("s")
    return f"the {clause}", f"What {'are' if several else 'is'} the {clause}?"


# --- definitions, code and signatures ------------------------------------------------------------

_TERM = re.compile(
    r"\s*(?:[-*+]\s+)?(?:\*\*(?P<bold>[^*\n]+?):?\*\*:?|(?P<code>`[^`\n]+`)(?=\s*[:—–]|\s+-\s))"
    r"\s*(?:[:—–]|-\s)?\s*(?P<text>.+)",
    re.S,
)
_LABELS = {
    *("note", "warning", "tip", "important", "caution", "attention", "danger", "error", "hint"),
    *("see also", "example", "examples", "info", "deprecated", "todo", "parameters", "returns"),
    *("return type", "raises", "yields", "changed", "new", "type", "return", "default", "usage"),
}


def _defined(section: "Section", block: "Block") -> Iterator[Fact]:
    """`**Term**: what it is`, a definition list's `: what it is`, or a lone term above its text."""
    found = _TERM.fullmatch(block.text)
    if found:
        term, text = found["bold"] or found["code"], found["text"]
        marked = ":" in block.text[: found.start("text")] or block.kind == "item"
        if not marked:
            return
    else:
        term, mark, text = block.text.partition("\n")
        if not mark or not re.match(r":\s+", text):
            return
        text = text[1:].lstrip()
    term = plain(term).strip(" :")
    sentence = next(sentences(text), "")
    said = plain(sentence)
    if term.casefold() in _LABELS or len(term.split()) > 6 or not _is_short(said):
        return
    if len(said.split()) < 2 or said[-1] not in ".!)`":
        return
    start = block.text.index(sentence, len(block.text) - len(text))
    evidence = block.text[: start + len(sentence)]
    if term.startswith("`"):
        clause = f"what {term} means"
        forms = _forms("clause", x=clause, question=f"What does {term} mean?")
        yield Fact("factual", forms, said, evidence, clause)
    else:
        name = common(term, said, section.page.text)
        clause = f"what “{name}” means"
        yield Fact("definition", _forms("definition", x=name), said, evidence, clause)


_ABOUT = re.compile(r"(?P<subject>(?:The (?:[\w-]+ ){1,2})?`[^`]+`) (?P<verb>[a-z]+s) ")
_NO_DEEDS = {"needs", "takes", "has", "goes", "looks", "uses", "differs", "works", "means", "lets"}
"""Verbs after which a sentence does not say what its subject does."""
_TRANSITIVE = {
    "contains",
    "counts",
    "decides",
    "holds",
    "keeps",
    "names",
    "reads",
    "returns",
    "shows",
    "writes",
}
"""Verbs that ask for what follows them: "what `run` returns"."""
_IS = re.compile(
    r"(?:An? (?P<term>[a-z][\w-]*(?: [a-z][\w-]*){0,2})|(?P<name>[A-Z]\w*[A-Z]\w*)) is (?:an?|the) "
)


def _about(block: "Block") -> Iterator[Fact]:
    """Sentences that begin with what they are about: "A chunk is a …", "`make setup` does …"."""
    for sentence in sentences(block.text):
        said = plain(sentence)
        if not _stands_alone(sentence):
            continue
        if (about := _ABOUT.match(said)) and about["verb"] in VERBS - _NO_DEEDS:
            subject = about["subject"][0].lower() + about["subject"][1:]
            verb = about["verb"] if about["verb"] in _TRANSITIVE else "does"
            clause = f"what {subject} {verb}"
            forms = _forms("clause", x=clause, question=f"What does {subject} {infinitive(verb)}?")
            yield Fact("factual", forms, said, sentence, clause)
        elif defined := _IS.match(said):
            name = defined["term"] or defined["name"]
            clause = f"what “{name}” means"
            yield Fact("definition", _forms("definition", x=name), said, sentence, clause)


def _fence(section: "Section", place: int) -> Iterator[Fact]:
    """Which command does what the sentence above it says; what a commented command does."""
    block = section.blocks[place]
    for line in block.text.splitlines():
        listed = re.fullmatch(r"\s*(?:\$ )?(\S.*?)\s+# (\w.*\w.*)", line)
        if listed and _is_command(listed[1]) and _is_short(listed[2]):
            subject = f"the command `{listed[1]}`"
            clause, question = f"what {subject} does", f"What does {subject} do?"
            forms = _forms("clause", x=clause, question=question)
            yield Fact("factual", forms, listed[2], line.strip(), clause)
        if signature := re.fullmatch(r"\s*((?:async )?def (\w+)\(.*\).*|class (\w+).*):", line):
            name = f"`{signature[2] or signature[3]}`"
            clause = f"what the signature of {name} is"
            forms = _forms("clause", x=clause, question=f"What is the signature of {name}?")
            yield Fact("factual", forms, f"`{signature[1]}`", line.strip(), clause)
    commands = _commands(block.text)
    if not commands or place == 0 or section.blocks[place - 1].kind != "paragraph":
        return
    above = section.blocks[place - 1]
    last = ["", *sentences(above.text)][-1]
    task = _task(plain(last))
    if not task:
        return
    if re.search(r"\b(it|them|this|these|those)\b", task):
        task += f" ({inside(section.title or section.page.title)})"
    evidence = section.page.text[above.start + above.text.rindex(last) : block.end]
    answer = f"Run {_in_ticks(commands)}."
    if _is_short(answer):
        yield Fact("code", _forms("code", x=task), answer, evidence, f"how to {task}")


def _task(sentence: str) -> str:
    """What the commands below are for: of "To stop it, run:" `stop it`."""
    if not sentence.endswith(":"):
        return ""
    words = sentence[:-1]
    if words.startswith("To "):
        task = words[3:]
        for comma in re.finditer(r", (?:then )?(\w+)\b", task):
            if comma[1] in IMPERATIVES or comma[1] in {"run", "type", "start", "use", "call"}:
                return task[: comma.start()]
        return task
    words = re.sub(r",? (?:and |then )+(?:run|type|start|use|call)\b.*$", "", words)
    return words[0].lower() + words[1:] if is_imperative(words) else ""


def _signature(section: "Section", place: int) -> Iterator[Fact]:
    """A paragraph that is a signature in ticks, and the text under it."""
    block = section.blocks[place]
    found = re.fullmatch(
        r"`((?:(?:async )?def |class |classmethod )?([\w.]+)\(.*\).*)`", block.text
    )
    if not found:
        return
    name = f"`{found[2]}`"
    if _is_short(found[1]):
        clause = f"what the signature of {name} is"
        forms = _forms("clause", x=clause, question=f"What is the signature of {name}?")
        yield Fact("factual", forms, f"`{found[1]}`", block.text, clause)
    below = section.blocks[place + 1 : place + 2]
    if below and below[0].kind == "paragraph":
        sentence = next(sentences(below[0].text), "")
        if _stands_alone(sentence):
            clause = f"what {name} does"
            forms = _forms("clause", x=clause, question=f"What does {name} do?")
            evidence = section.page.text[block.start : below[0].start + len(sentence)]
            yield Fact("factual", forms, plain(sentence), evidence, clause)


_COMMANDS = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:sudo )?(?:python3?|make|dvc|docker|pip3?|git|curl|mlflow|uv|cd|cp|mv|rm|"
    r"export|axolotl|source|mkdir|conda|npm|npx|kubectl|ollama|wget|apt(?:-get)?|ssh|rsync|tar|bash|"
    r"sh|cat|echo|vllm|torchrun|hf|\.{0,2}/?[\w.-]*/(?:bin/)?[\w./-]+)(?: |$)"
)


def _is_command(line: str) -> bool:
    return _COMMANDS.match(line) is not None


def _commands(fence: str) -> list[str]:
    """The one to three commands of a fence; none where it holds anything else."""
    lines = fence.strip().splitlines()
    language = lines[0].lstrip("`~ ").split(" ")[0]
    if language not in {"", "bash", "sh", "shell", "console", "text", "zsh", "shell-session"}:
        return []
    body = lines[1:-1] if len(lines) > 1 and lines[-1].strip().startswith(lines[0][:3]) else []
    found = [re.sub(r"\s+#\s.*$", "", line.strip()).removeprefix("$ ") for line in body]
    found = [line for line in found if line and not line.startswith("#")]
    whole = all(_is_command(line) and not line.endswith("\\") for line in found)
    return found if whole and len(found) <= 3 else []


def _in_ticks(commands: Sequence[str]) -> str:
    return " and then ".join(f"`{command}`" for command in commands)


def _forms(row: str, **values: str) -> tuple[str, ...]:
    """The questions of a row; every second one without ticks, as people type."""
    asked = [form.format(**values) for form in FORMS[row]]
    return tuple(q.replace("`", "") if place % 2 else q for place, q in enumerate(asked))


def _is_short(text: str) -> bool:
    return 0 < len(text.split()) <= MAX_ANSWER_WORDS
