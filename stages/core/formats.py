"""Examples to the rows that other tools train on, and each format as a chat template of its own.

A dialogue is a text with marks between its parts. What a row says and what the template renders
for the same dialogue is the same text, so that a model is served as it was trained.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Example, Message, Reject

Mark = Annotated[str, Field(min_length=1)]
Key = Annotated[str, Field(min_length=1)]
Messages = tuple[Message, ...]

MARK_INSIDE = "holds a mark of the format"
NO_DIALOGUE = "not a dialogue of questions and answers"
AMBIGUOUS = "would be read back as something else"


class _Format(config.Base):
    id_key: Key | None
    """Name of the key that holds the example's id; null leaves the id out."""

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        names = [getattr(self, field) for field in type(self).model_fields if field[-4:] == "_key"]
        for name in names:
            if name is not None and names.count(name) > 1:
                raise PydanticCustomError("keys", f"two keys are named {name!r}: name each apart")
        return self


class Chat(_Format):
    """A list of messages with their roles, as Axolotl's type `chat_template` reads it."""

    kind: Literal["chat"]
    file: Literal["jsonl"]
    """Kind of file; messages are no flat row, so there is no CSV of them."""
    messages_key: Key
    """Name of the key that holds the messages."""
    role_key: Key
    """Name of the key that holds the role of a message."""
    content_key: Key
    """Name of the key that holds the text of a message."""
    stop: Mark | None
    """Text that ends each message, such as <|end|>, where the template is ours: <|user|>, the text
    and this; null leaves the tokenizer its own template."""


class Alpaca(_Format):
    """An instruction, an input with the context, and an output.

    Earlier turns of a dialogue stand in the instruction, between the same marks.
    """

    kind: Literal["alpaca"]
    file: Literal["jsonl", "csv"]
    """Kind of file: JSON Lines or CSV."""
    instruction_key: Key
    """Name of the key that holds the question."""
    input_key: Key
    """Name of the key that holds the context; its value is empty where there is none."""
    output_key: Key
    """Name of the key that holds the answer."""
    preamble: str
    """Text before an instruction without input, in the template only."""
    preamble_with_input: str
    """Text before an instruction with input, in the template only."""
    instruction_mark: str
    """Text before an instruction, such as `### Instruction:` with a line end."""
    input_mark: Mark
    """Text between an instruction and its input."""
    response_mark: Mark
    """Text between instruction or input and the output; the prompt ends with it."""
    turn_separator: str
    """Text between the end of an answer and the next instruction of a dialogue."""
    stop: Mark
    """Text that ends an answer, such as the tokenizer's end of a text. It is no part of the row's
    output: who trains on alpaca rows appends it."""


class Completion(_Format):
    """A prompt and its completion; one plus the other is the text."""

    kind: Literal["completion"]
    file: Literal["jsonl", "csv"]
    """Kind of file: JSON Lines or CSV."""
    prompt_key: Key
    """Name of the key that holds the prompt."""
    completion_key: Key
    """Name of the key that holds the completion."""
    context_prefix: str
    """Text before the context."""
    context_suffix: Mark
    """Text between the context and the question."""
    prompt_suffix: Mark
    """Text that ends a question, and so the prompt; also called the separator."""
    completion_prefix: str
    """Text before an answer, mostly one space; the model writes it."""
    turn_separator: str
    """Text between the end of an answer and the next question of a dialogue."""
    stop: Mark
    """Text that ends an answer, and so the completion; also called the stop word."""


class QuestionAnswer(_Format):
    """One text such as `question: … answer: …`."""

    kind: Literal["question_answer"]
    file: Literal["jsonl", "csv"]
    """Kind of file: JSON Lines or CSV."""
    text_key: Key
    """Name of the key that holds the text."""
    context_prefix: str
    """Text before the context, such as `context: `."""
    context_suffix: str
    """Text between the context and question_prefix."""
    question_prefix: Mark
    """Text before a question, such as `question: `."""
    answer_mark: Mark
    """Text between a question and its answer, such as ` answer:`; the prompt ends with it."""
    answer_prefix: str
    """Text before an answer, mostly one space; the model writes it."""
    turn_separator: str
    """Text between the end of an answer and the next question of a dialogue."""
    stop: Mark
    """Text that ends an answer."""


Config = Annotated[Chat | Alpaca | Completion | QuestionAnswer, Field(discriminator="kind")]


# --- writing -----------------------------------------------------------------------------------


def write(cfg: Config, examples: Iterable[Example], path: Path) -> list[Reject]:
    """Write the rows as JSON Lines or CSV, whole or not at all; the examples that cannot be."""
    rejects: list[Reject] = []
    count = num_rows = 0
    with store.replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        table = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        if cfg.file == "csv":
            table.writerow(columns(cfg))
        for example in examples:
            count += 1
            if (reject := refuse(cfg, example)) is not None:
                rejects.append(reject)
                continue
            num_rows += 1
            row = _row(cfg, example)
            if cfg.file == "csv":
                table.writerow(row.values())
            else:
                text.write(_line(row))
        text.detach()  # flushes, and leaves the file to `replacing`
    assert count == num_rows + len(rejects)
    return rejects


def rows(cfg: Config, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """A row for each example that `refuse` lets pass, in their order."""
    return (_row(cfg, example) for example in examples if refuse(cfg, example) is None)


def columns(cfg: Config) -> list[str]:
    """The keys of a row, in their order."""
    match cfg:
        case Chat():
            keys = [cfg.messages_key]
        case Alpaca():
            keys = [cfg.instruction_key, cfg.input_key, cfg.output_key]
        case Completion():
            keys = [cfg.prompt_key, cfg.completion_key]
        case QuestionAnswer():
            keys = [cfg.text_key]
    return keys if cfg.id_key is None else [cfg.id_key, *keys]


def refuse(cfg: Config, example: Example) -> Reject | None:
    """Why an example has no row: one of its texts holds a mark, so that a part has two ends.

    A mark may also arise where a text meets the next mark: what would not be read back as it was
    is refused too.
    """
    messages = dialogue(example)
    marks = _delimiters(cfg)
    inside = next((m for m in marks for turn in messages if m in turn.content), None)
    if inside is not None:
        return Reject(id=example.id, reason=MARK_INSIDE, detail=repr(inside))
    if isinstance(cfg, Chat):
        return None
    if not _alternates(messages):
        roles = ", ".join(turn.role for turn in messages)
        return Reject(id=example.id, reason=NO_DIALOGUE, detail=roles)
    if not _is_read_back(cfg, example):
        return Reject(id=example.id, reason=AMBIGUOUS, detail=example.question)
    return None


def _is_read_back(cfg: Config, example: Example) -> bool:
    try:
        return _messages(cfg, _row(cfg, example)) == dialogue(example)
    except ValueError:
        return False


def dialogue(example: Example) -> Messages:
    """The example's messages, ending with its answer."""
    if example.messages and example.messages[-1].role == "assistant":
        return example.messages
    return (*example.messages, Message(role="assistant", content=example.answer))


def _alternates(messages: Messages) -> bool:
    """Whether it is a context or none, and then questions each with its answer."""
    turns = [turn.role for turn in messages[messages[0].role == "system" :]]
    return bool(turns) and turns == ["user", "assistant"] * (len(turns) // 2)


def _delimiters(cfg: Config) -> list[str]:
    """The marks that end a text, wherever they stand in it."""
    match cfg:
        case Chat():
            return [] if cfg.stop is None else [cfg.stop, *(f"<|{role}|>" for role in ROLES)]
        case Alpaca():
            return [cfg.stop, cfg.response_mark, cfg.input_mark]
        case _:
            marks = _marks(cfg)
            return [cfg.stop, marks.question_suffix, marks.context_suffix + marks.question_prefix]


ROLES = ("system", "user", "assistant")


def _row(cfg: Config, example: Example) -> dict[str, Any]:
    messages = dialogue(example)
    prompt, completion = render(cfg, messages)
    values: list[Any]
    match cfg:
        case Chat():
            values = [[{cfg.role_key: m.role, cfg.content_key: m.content} for m in messages]]
        case Alpaca():
            context, turns = _parts(messages)
            values = [_instruction(cfg, turns), context, turns[-1][1]]
        case Completion():
            values = [prompt, completion]
        case QuestionAnswer():
            values = [prompt + completion]
    if cfg.id_key is not None:
        values = [example.id, *values]
    return dict(zip(columns(cfg), values, strict=True))


def _line(row: dict[str, Any]) -> str:
    """JSON and a line end; no other character that some readers take for the end of a line."""
    line = json.dumps(row, ensure_ascii=False)
    for mark in ("\x85", "\u2028", "\u2029"):
        line = line.replace(mark, f"\\u{ord(mark):04x}")
    return f"{line}\n"


# --- the text of a dialogue --------------------------------------------------------------------


def render(cfg: Config, messages: Sequence[Message]) -> tuple[str, str]:
    """The text of a dialogue in two: what the model is given, and what it shall write.

    The second ends with the stop text. For a `chat` without one it is not known: both are empty.
    """
    match cfg:
        case Chat():
            if cfg.stop is None:
                return "", ""
            *before, last = (f"<|{m.role}|>{m.content}{cfg.stop}" for m in messages)
            prompt = "".join(before) + "<|assistant|>"
            return prompt, last.removeprefix("<|assistant|>")
        case Alpaca():
            context, turns = _parts(messages)
            opening = cfg.preamble_with_input if context else cfg.preamble
            given = cfg.input_mark + context if context else ""
            asked = cfg.instruction_mark + _instruction(cfg, turns)
            return opening + asked + given + cfg.response_mark, turns[-1][1] + cfg.stop
        case _:
            return _marks(cfg).render(messages)


def _instruction(cfg: Alpaca, turns: Sequence[tuple[str, str]]) -> str:
    """The last question after the earlier turns."""
    joint = cfg.stop + cfg.turn_separator + cfg.instruction_mark
    earlier = [question + cfg.response_mark + answer for question, answer in turns[:-1]]
    return joint.join([*earlier, turns[-1][0]])


def _parts(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """The context, or the empty string, and each question with its answer."""
    context = messages[0].content if messages[0].role == "system" else ""
    turns = [turn.content for turn in messages if turn.role != "system"]
    return context, list(zip(turns[::2], turns[1::2], strict=True))


def _dialogue(context: str | None, turns: Iterable[tuple[str, str]]) -> Messages:
    said = [] if context is None else [Message(role="system", content=context)]
    for question, answer in turns:
        said.append(Message(role="user", content=question))
        said.append(Message(role="assistant", content=answer))
    return tuple(said)


@dataclass(frozen=True)
class _Marks:
    """What stands between the parts of a flat text."""

    context_prefix: str
    context_suffix: str
    question_prefix: str
    question_suffix: str
    answer_prefix: str
    stop: str
    between: str

    def render(self, messages: Sequence[Message]) -> tuple[str, str]:
        context, turns = _parts(messages)
        given = self.context_prefix + context + self.context_suffix if context else ""
        asked = [self.question_prefix + q + self.question_suffix for q, _ in turns]
        said = [self.answer_prefix + a + self.stop for _, a in turns]
        earlier = "".join(q + a + self.between for q, a in zip(asked[:-1], said, strict=False))
        return given + earlier + asked[-1], said[-1]

    def read(self, text: str) -> Messages:
        """The dialogue that `render` made the text of; ValueError where it made no such text."""
        context = None
        joint = self.context_suffix + self.question_prefix
        at = text.find(joint)
        if text.startswith(self.context_prefix) and 0 <= at < text.find(self.question_suffix):
            context = text[len(self.context_prefix) : at]
            text = text[at + len(self.context_suffix) :]
        turns = []
        while True:
            text = _after(text, self.question_prefix)
            question, text = _until(text, self.question_suffix)
            answer, text = _until(_after(text, self.answer_prefix), self.stop)
            turns.append((question, answer))
            if not text:
                return _dialogue(context, turns)
            text = _after(text, self.between)


def _marks(cfg: Completion | QuestionAnswer) -> _Marks:
    match cfg:
        case Completion():
            question, answer = ("", cfg.prompt_suffix), cfg.completion_prefix
        case QuestionAnswer():
            question, answer = (cfg.question_prefix, cfg.answer_mark), cfg.answer_prefix
    context = (cfg.context_prefix, cfg.context_suffix)
    return _Marks(*context, *question, answer, cfg.stop, cfg.turn_separator)


def _after(text: str, mark: str) -> str:
    if not text.startswith(mark):
        raise ValueError(f"expected {mark!r} before {text[:20]!r}")
    return text[len(mark) :]


def _until(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"expected {mark!r} after {text[:20]!r}")
    return before, after


# --- reading back ------------------------------------------------------------------------------


def read_back(cfg: Config, path: Path) -> list[Messages]:
    """The dialogues of a file that `write` wrote, in its order."""
    found = []
    for number, row in _read(cfg, path):
        try:
            found.append(_messages(cfg, row))
        except ValueError as error:
            said = " ".join(str(error).split())
            raise PipelineError(f"{path}:{number}: no row of kind {cfg.kind}: {said}") from None
    return found


def _read(cfg: Config, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with the number of its first line."""
    with path.open(encoding="utf-8", newline="" if cfg.file == "csv" else "\n") as file:
        if cfg.file == "csv":
            cells = table(file, ",", path)
            _, names = next(cells, (1, []))
            for number, values in cells:
                if len(values) != len(names):
                    raise PipelineError(
                        f"{path}:{number}: {len(values)} cells: expected {len(names)} as in line 1"
                    )
                yield number, dict(zip(names, values, strict=True))
            return
        for number, line in enumerate(file, 1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise PipelineError(f"{path}:{number}: not JSON: {error.msg}") from None


def table(file: IO[str], delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that was opened with newline="", each with its first line's number.

    Cells may have any length; `path` is what an error names.
    """
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    first = 1
    while True:
        try:
            with _any_length():
                values = next(reader, None)
        except csv.Error as error:
            raise PipelineError(
                f"{path}:{first}: no row of CSV: {error}: save the file again as CSV"
            ) from None
        if values is None:
            return
        yield first, values
        first = reader.line_num + 1


@contextlib.contextmanager
def _any_length() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)  # of the whole process: put back at once
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _messages(cfg: Config, row: dict[str, Any]) -> Messages:
    """The dialogue of a row; ValueError where it is none."""
    wanted = [key for key in columns(cfg) if key != cfg.id_key]
    if not isinstance(row, dict) or not set(wanted) <= row.keys():
        raise ValueError(f"expected the keys {', '.join(wanted)}")
    values = [row[key] for key in wanted]
    if isinstance(cfg, Chat):
        keys = {cfg.role_key, cfg.content_key}
        said = values[0] if isinstance(values[0], list) else [values[0]]
        if not all(isinstance(turn, dict) and keys <= turn.keys() for turn in said):
            raise ValueError(f"expected messages with {cfg.role_key} and {cfg.content_key}")
        return tuple(
            Message(role=turn[cfg.role_key], content=turn[cfg.content_key]) for turn in said
        )
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected text in {', '.join(wanted)}")
    match cfg:
        case Alpaca():
            instruction, context, output = values
            joint = cfg.stop + cfg.turn_separator + cfg.instruction_mark
            *earlier, question = instruction.split(joint)
            turns = [_until(turn, cfg.response_mark) for turn in earlier]
            return _dialogue(context or None, [*turns, (question, output)])
        case _:
            return _marks(cfg).read("".join(values))


# --- the chat template -------------------------------------------------------------------------


def chat_template(cfg: Config) -> tuple[str, str] | None:
    """The Jinja template that renders what `render` does, and the text that stops an answer.

    None for a `chat` without a stop text, which leaves the tokenizer its own.
    """
    match cfg:
        case Chat():
            if cfg.stop is None:
                return None
            each = _says("'<|' + message['role'] + '|>'", "message['content']", _quote(cfg.stop))
            return _each(each) + _generation("<|assistant|>"), cfg.stop
        case Alpaca():
            return _alpaca_template(cfg), cfg.stop
        case _:
            marks = _marks(cfg)
            system = _text(marks.context_prefix, marks.context_suffix)
            # The first question is message 0, or 1 after a context.
            between = f"{{%- if loop.index0 > 1 -%}}{_says(_quote(marks.between))}{{%- endif -%}}"
            user = between + _text(marks.question_prefix, marks.question_suffix)
            return _each(_by_role(system, user, _text(marks.answer_prefix, marks.stop))), cfg.stop


def _alpaca_template(cfg: Alpaca) -> str:
    """The context stands after the last question, so it is taken from the front and kept."""
    asked = (
        f"{{%- if loop.index0 > 1 -%}}{_says(_quote(cfg.turn_separator))}{{%- endif -%}}"
        + _text(cfg.instruction_mark, "")
        + "{%- if context and loop.index0 >= messages | length - 2 -%}"
        + _says(_quote(cfg.input_mark), "context")
        + "{%- endif -%}"
        + _says(_quote(cfg.response_mark))
    )
    return (
        "{%- set context = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}"
        f"{{%- if context -%}}{_says(_quote(cfg.preamble_with_input))}"
        f"{{%- else -%}}{_says(_quote(cfg.preamble))}{{%- endif -%}}"
        + _each(_by_role("", asked, _text("", cfg.stop)))
    )


def _each(body: str) -> str:
    return f"{{%- for message in messages -%}}{body}{{%- endfor -%}}"


def _by_role(system: str, user: str, assistant: str) -> str:
    return (
        f"{{%- if message['role'] == 'system' -%}}{system}"
        f"{{%- elif message['role'] == 'user' -%}}{user}"
        f"{{%- else -%}}{assistant}{{%- endif -%}}"
    )


def _generation(text: str) -> str:
    return f"{{%- if add_generation_prompt -%}}{_says(_quote(text))}{{%- endif -%}}"


def _text(before: str, after: str) -> str:
    return _says(_quote(before), "message['content']", _quote(after))


def _says(*parts: str) -> str:
    """An expression that renders the parts one after another; nothing where all are empty."""
    wanted = [part for part in parts if part != "''"]
    return f"{{{{ {' + '.join(wanted)} }}}}" if wanted else ""


def _quote(text: str) -> str:
    """The text as a string of Jinja, which reads the escapes of Python."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"
