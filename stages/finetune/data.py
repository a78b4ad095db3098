"""Examples, documents and preference pairs to the files that Axolotl reads."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core import model as base
from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Assignment, Document, Example, Preference, Reject

NO_EXAMPLE = "pair of no training example"
AXOLOTL_CUTS_AT = 64
"""Contexts: of a longer text Axolotl's `completion` drops the rest without a word."""


def write_chats(examples: Iterable[Example], path: Path, model: base.Config) -> None:
    """Write the examples as Axolotl's `chat_template` reads them, each ending with its answer."""
    last_only = isinstance(model, base.Pretrained) and model.trained_answers == "last"
    rows = []
    for example in examples:
        turns: list[dict[str, Any]] = [turn.model_dump() for turn in example.messages]
        if turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": example.answer})
        if last_only:
            for turn in turns:
                turn["train"] = turn is turns[-1]
        rows.append({"id": example.id, "messages": turns})
    _write(path, rows)


def write_texts(texts: Iterable[str], path: Path, context_tokens: int) -> None:
    """Write texts as Axolotl's `completion` reads them, none longer than it reads to the end."""
    most = AXOLOTL_CUTS_AT * context_tokens  # a token has at least one byte
    _write(path, [{"text": piece} for text in texts for piece in pieces(text, most)])


def pieces(text: str, most: int) -> list[str]:
    """The text in pieces of at most `most` bytes, cut between paragraphs where one is near."""
    made = []
    rest = text.encode()
    while len(rest) > most:
        cut = max(rest.rfind(b"\n\n", most // 2, most), rest.rfind(b"\n", most // 2, most))
        cut = cut if cut > 0 else most
        while rest[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        made.append(rest[:cut].decode())
        rest = rest[cut:]
    return [*made, rest.decode()]


def write_pairs(
    pairs: Sequence[Preference], examples: Mapping[str, Example], path: Path
) -> list[Reject]:
    """Write the pairs as our plugin's `preferences` reads them; those whose example is gone."""
    rows, rejects = [], []
    for pair in pairs:
        if example := examples.get(pair.example_id):
            turns = [turn.model_dump() for turn in example.messages]
            if turns[-1]["role"] == "assistant":
                turns.pop()
            rows.append(
                {
                    "id": pair.example_id,
                    "messages": turns,
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                }
            )
        else:
            rejects.append(Reject(id=pair.example_id, reason=NO_EXAMPLE))
    _write(path, rows)
    return rejects


def train_documents(documents: Path, assignment: Path) -> list[Document]:
    """The documents that are assigned to train, in the order of their ids."""
    train = {
        row.document_id for row in store.read(assignment, Assignment) if row.partition == "train"
    }
    found = [row for row in store.read(documents, Document) if row.id in train]
    return sorted(found, key=lambda document: document.id)


def train_texts(documents: Sequence[Document], assignment: Path) -> list[str]:
    if not documents:
        raise PipelineError(f"{assignment}: no document is assigned to train: add documents")
    return [document.text for document in documents]


def paraphrases(examples: Iterable[Example]) -> list[str]:
    """What the teacher has said anew of the train documents, each text once."""
    return sorted({example.answer for example in examples if example.kind == "paraphrase"})


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    store.write_text(path, "".join(lines))
