"""Writes docs/reference/: every key of every section, from the Config docstrings and conf/.

Run by `make docs`; tests/test_house.py holds the committed pages to the code.
"""

import sys
import types
import typing
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from stages import pipeline
from stages.core import config, tracking

WHAT = {
    "source": "names the body of documents",
    "crawl": "says how politely and how far a source is fetched",
    "split": "cuts documents into chunks",
    "embedder": "turns texts into vectors, by which meanings are compared",
    "index": "makes chunks searchable",
    "teacher": "is the model that writes questions and answers",
    "synthesize": "says which examples are made of the chunks",
    "model": "is the base model",
    "finetune": "says how the base model is trained",
    "deploy": "says how the models are served",
    "answer": "says how a question is answered",
    "evaluate": "says which systems are compared and how",
    "tracking": "says where runs are recorded",
}


def sections() -> dict[str, Any]:
    """The schema of every section, in the order of `WHAT`."""
    found = {"tracking": tracking.Config}
    for stage in pipeline.STAGES:
        found |= pipeline.signature(stage).sections
    return {name: found[name] for name in WHAT if name in found}


def pages() -> dict[str, str]:
    """File name to Markdown, for the whole of docs/reference/."""
    made = {f"keys-{name}.md": _page(name, schema) for name, schema in sections().items()}
    rows = "\n".join(f"| [{name}](keys-{name}.md) | {WHAT[name]} |" for name in sections())
    listed = "\n".join(f"keys-{name}" for name in sections())
    made["index.md"] = (
        "# Reference of all keys\n\nEvery section of `params.yaml` is a group of `conf/`, and "
        "every file of the group is one option.\n\n| section | what it is for |\n|---|---|\n"
        f"{rows}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )
    return made


def _page(section: str, schema: Any) -> str:
    options = sorted(Path("conf", section).glob("*.yaml"))
    values = {path.stem: yaml.safe_load(path.read_text()) or {} for path in options}
    text = [
        f"# Keys of the section {section}",
        f"The section `{section}` {WHAT[section]}; its options are "
        + ", ".join(f"`{section}={name}`" for name in values)
        + ".",
    ]
    for variant in _variants(schema):
        kind = _kind(variant)
        chosen = {n: v for n, v in values.items() if kind is None or v.get("kind") == kind}
        if kind is not None:
            text.append(f"## Keys of {section} where kind is {kind}")
            text.append(" ".join((variant.__doc__ or "").split()))
        text.append(_table(_rows(section, variant, chosen)))
    text += [
        part for key, nested in _nested(schema).items() for part in _group(section, key, nested)
    ]
    return "\n\n".join(text) + "\n"


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = [
        f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in rows
    ]
    return "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(lines)


def _nested(schema: Any) -> dict[str, list[Any]]:
    """The fields that are a choice of sections, with a folder of options in conf/ each."""
    found = {}
    for variant in _variants(schema):
        for name, field in variant.model_fields.items():
            several = [v for v in _variants(field.annotation) if _is_section(v)]
            if len(several) > 1:
                found[name] = several
    return found


def _group(section: str, key: str, nested: list[Any]) -> list[str]:
    folder = Path("conf", section, key)
    values = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}
    text = []
    for variant in nested:
        kind = _kind(variant)
        chosen = {name: value for name, value in values.items() if value.get("kind") == kind}
        options = ", ".join(f"`{section}/{key}={name}`" for name in chosen)
        text.append(f"## Keys of {section}.{key} where kind is {kind}")
        words = " ".join((variant.__doc__ or "").split())
        text.append(f"{words} {'Its option is' if options else ''} {options}.".replace("  .", ""))
        if rows := _rows(f"{section}.{key}", variant, chosen):
            text.append(_table(rows))
    return text


def _rows(prefix: str, schema: Any, options: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    inherited = set()
    variants = [(name, v) for name, of in sections().items() for v in _variants(of)]
    for section, variant in variants:
        if variant in schema.__mro__[1:]:  # settings of another section, and more
            inherited = set(variant.model_fields)
            meaning = f"As in [{section}](keys-{section}.md), where kind is `{_kind(variant)}`."
            rows.append((f"{prefix}.*", "mapping", "", meaning))
    for name, field in schema.model_fields.items():
        if name == "kind" or name in inherited:
            continue
        given = {o: v[name] for o, v in options.items() if isinstance(v, dict) and name in v}
        if name in _nested(schema):
            continue
        inner = [
            a for a in (field.annotation, *typing.get_args(field.annotation)) if _is_section(a)
        ]
        if inner:
            named = typing.get_origin(field.annotation) is dict
            rows += _rows(f"{prefix}.{name}{'.NAME' * named}", inner[0], given)
            continue
        distinct = list(dict.fromkeys(map(_value, given.values())))
        default = (
            distinct[0]
            if len(distinct) == 1
            else ", ".join(f"{_value(value)} ({option})" for option, value in given.items())
        )
        meaning = " ".join((field.description or "").split()).replace("|", "or")
        rows.append((f"{prefix}.{name}", _type(field.annotation), default, meaning))
    return rows


def _variants(schema: Any) -> list[Any]:
    if typing.get_origin(schema) is typing.Annotated:
        schema = typing.get_args(schema)[0]
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return list(typing.get_args(schema))
    return [schema]


def _kind(variant: Any) -> str | None:
    field = variant.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, config.Base)


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (list, tuple):
        return "list of " + _type(typing.get_args(annotation)[0])
    names = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "NoneType": "null",
        "dict": "mapping",
        "Path": "path",
    }
    name = getattr(typing.get_origin(annotation) or annotation, "__name__", str(annotation))
    return names.get(name, name)


def _value(value: Any) -> str:
    if isinstance(value, dict) and value:
        return ""
    if value == "${seed}":
        return "the shared `seed`"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "empty"
    if value in (None, {}, ""):
        return {"None": "null", "{}": "empty", "": "empty"}[str(value)]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    folder = Path("docs/reference")
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
