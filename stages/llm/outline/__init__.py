"""The outline teacher: a chunk of Markdown in, questions and answers out, with no language model.

It stands behind the same chat-completions interface as a model (`Transport`), so that the caller
has one code path. It is asked as a model is, and reads of the prompt only what `lay_out` wrote.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx2

from stages.llm.outline.markdown import Page, one_line
from stages.llm.outline.writing import Fact, write

__all__ = ["Page", "Transport", "lay_out", "read", "version", "write"]


def lay_out(page: Page) -> str:
    """The chunk as the last message of a prompt, for a model and for `read` alike."""
    lines = [f"Page: {one_line(page.title)}"]
    lines += [f"Heading: {one_line(heading)}" for heading in page.headings]
    if page.table_header:
        lines.append(f"Table header: {one_line(page.table_header)}")
    return "\n".join(lines) + "\n\n" + page.text


def read(content: str) -> Page:
    head, _, text = content.partition("\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.splitlines():
        name, _, value = line.partition(": ")
        fields.setdefault(name, []).append(value)
    return Page(
        title="".join(fields.get("Page", [])),
        headings=tuple(fields.get("Heading", [])),
        table_header="".join(fields.get("Table header", [])),
        text=text,
    )


class Transport(httpx2.BaseTransport):
    """Answers POST /chat/completions inside this process."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        prompt = [message["content"] for message in body["messages"]]
        rows = [_row(fact) for fact in write(read(prompt[-1]))]
        content = json.dumps({"facts": rows}, ensure_ascii=False)
        # Words stand in for tokens: this teacher has no tokenizer, and costs nothing.
        prompt_tokens, completion_tokens = len(" ".join(prompt).split()), len(content.split())
        return httpx2.Response(
            200,
            json={
                "id": "chatcmpl-outline",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": content},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            },
        )


def version() -> str:
    """The digest of this source: a better teacher must not be answered for by an older one."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _row(fact: Fact) -> dict[str, Any]:
    return {
        "kind": fact.kind,
        "history": [
            {"question": turn.forms[0], "answer": turn.answer, "evidence": turn.evidence}
            for turn in fact.history
        ],
        "forms": list(fact.forms),
        "answer": fact.answer,
        "evidence": fact.evidence,
    }
