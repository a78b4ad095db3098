"""From a trainer's log to one line: why it failed, and which key of ours helps."""

import re
from collections.abc import Collection

from stages.finetune.passthrough import OWNED

TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):$.*?^(?P<said>[^\s].*?)"
    r"(?=^\s*$|^\[|^[WEI]\d{4} |^Traceback|\Z)",
    re.MULTILINE | re.DOTALL,
)
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|(can't|[Cc]annot) allocate memory|std::bad_alloc|"
    r"^(\w+\.)*MemoryError\b|CUBLAS_STATUS_ALLOC_FAILED|oom[-_]kill",
    re.MULTILINE,
)
DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|os error 28\b")
INVALID = re.compile(
    r"\d+ validation errors? for \w+ "
    r"(?:(?P<key>(?!Value error,|Assertion failed,)\w+)(?:\.\w+)* )?"
    r"(?:Value error, |Assertion failed, )?(?P<said>.+?)(?: \[type=.*)?$"
)
"""As pydantic says it; an error of several keys together is told without one."""
KILLED = re.compile(r"exitcode *: *-9\b|Signal 9 \(SIGKILL\)|died with <Signals.SIGKILL")
MEMORY = (
    "lower finetune.micro_batch_size (finetune.cpt_micro_batch_size while documents are read; and "
    "raise finetune.gradient_accumulation_steps as much) or model.context_tokens, train an adapter "
    "(finetune=lora, finetune=qlora), or share the memory out (finetune.deepspeed)"
)
DISK = (
    "free some room; .cache/training keeps the checkpoints of every training that has not ended; "
    "running again goes on from the newest whole one"
)


def explain(error: str, code: int, log: str, known: Collection[str] = ()) -> str:
    """Why a training ended: by what the plugin told, the exit code and the log.

    `known` are the keys of its YAML.
    """
    said = error or decisive(log)
    if DISK_FULL.search(error or log):
        return f"no room is left on the disk: {DISK}"
    if OUT_OF_MEMORY.search(error or log):
        return f"out of memory: {_brief(said)}: {MEMORY}"
    if not error and (code in (-9, 137) or KILLED.search(log)):
        return (
            "it was killed (signal 9), by the system if it had no memory left, or by someone: "
            f"running again goes on from the newest checkpoint; if it was memory, {MEMORY}"
        )
    if not error and (wrong := INVALID.search(said)):
        found = [wrong["key"]] if wrong["key"] else re.findall(r"\w+", wrong["said"])
        keys = [key for key in found if wrong["key"] or key in known or key in OWNED]
        named = " and ".join(dict.fromkeys(map(ours, keys))) or "finetune.axolotl"
        return f"{named}: {_brief(wrong['said'])} (look at conf/finetune)"
    return said


def ours(key: str) -> str:
    """Where a key of Axolotl's YAML is set."""
    return OWNED.get(key, f"finetune.axolotl.{key}")


def _brief(said: str) -> str:
    return said if len(said) <= 160 else f"{said[:160]}…"


def decisive(log: str) -> str:
    """The line of a trainer's log that says why it failed: its last own exception, in one line.

    torchrun adds a traceback of its own that says only that a process failed.
    """
    log = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE)
    said = [" ".join(match["said"].split()) for match in TRACEBACK.finditer(log)]
    own = [line for line in said if not re.match(r"[\w.]*ChildFailedError", line)]
    if own:
        return own[-1][:500]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
