"""Models that others serve, asked through the one retry layer and kept in the ledger."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import llm
from stages.answer.endpoint import Completion, RefusedError
from stages.core import config, progress
from stages.core.records import Message


@dataclass(frozen=True)
class Hosted:
    """What endpoint.json says of the models, and who answers as each."""

    models: Mapping[str, Mapping[str, Any]]
    teachers: Mapping[str, llm.Teacher]

    def complete(
        self, model: str, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0
    ) -> Completion:
        return answer(self.teachers[model], messages)


def answer(teacher: llm.Teacher, messages: Sequence[Message]) -> Completion:
    """As the endpoint's own settings say: those of our servers do not apply to it."""
    try:
        reply = teacher.complete(messages, None)
    except llm.RefusedError as error:
        raise RefusedError("endpoint", str(error)) from None
    return Completion(
        reply.text,
        reply.completion_tokens,
        reply.finish_reason,
        reply.cost_usd,
        reply.cached,
    )


@contextlib.contextmanager
def connect(manifest: Path, said: Mapping[str, Any]) -> Iterator[Hosted]:
    """The models of a manifest; nothing is started, since they are served already."""
    with contextlib.ExitStack() as stack:
        teachers = {}
        for name, about in said["models"].items():
            section = {"deploy": said["settings"] | {"kind": "openai", "model": about["id"]}}
            cfg = config.load(section, "deploy", llm.OpenAI, str(manifest))
            teachers[name] = stack.enter_context(llm.open(cfg, "deploy"))
        yield Hosted(said["models"], teachers)
        for name, teacher in teachers.items():
            # What is paid now, not what was: a rerun costs nothing.
            progress.step(1, 1, name, cost_usd=teacher.usage.cost_usd)
