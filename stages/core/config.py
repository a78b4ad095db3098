"""Typed sections of params.yaml; a mistake in one is a line that names key, value and remedy."""

import difflib
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stages.core.errors import PipelineError


class Base(BaseModel):
    """A section of params.yaml, or a part of one."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )


def read(path: Path) -> dict[str, Any]:
    """All sections of a params file, unchecked."""
    try:
        params = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `make params` composes it from conf/") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict):
        raise PipelineError(f"{path}: expected sections (a mapping), found {type(params).__name__}")
    return params


def load(params: dict[str, Any], section: str, schema: Any, origin: str = "params.yaml") -> Any:
    """The named section, checked against its schema: a `Base`, or a tagged union of them."""
    if section not in params:
        known = ", ".join(sorted(params))
        raise PipelineError(f"{origin}: section {section!r} is missing; it has {known}")
    try:
        # JSON mode: strict, but a list may become a tuple and an int a float.
        return TypeAdapter(schema).validate_json(json.dumps(params[section]))
    except ValidationError as error:
        raise PipelineError(
            f"{origin}: {_explain(section, error, params[section], schema)}"
        ) from None


def _explain(section: str, error: ValidationError, at: Any, schema: Any) -> str:
    """The first mistake as `key: value: what is expected`, with how many more there are."""
    mistakes = error.errors()
    # A misspelt key is also a missing one: the misspelling says more.
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    keys = [section]
    for place, part in enumerate(first["loc"]):
        names: Any = range(len(at)) if isinstance(at, list) else at
        if isinstance(at, dict | list) and part in names:
            at = at[cast(Any, part)]
        elif place < len(first["loc"]) - 1:
            continue  # the tag of a union, which pydantic puts into the location
        keys.append(str(part))
    key = ".".join(keys)
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            known = _fields(schema, first["loc"][:-1])
            near = nearest(keys[-1], known)
            said = f"unknown key{near}: expected one of {', '.join(known)}"
        case "missing":
            said = "required, and not set"
        case "union_tag_invalid":
            key = f"{key}.kind"
            said = f"{first['ctx']['tag']!r}: expected one of {first['ctx']['expected_tags']}"
        case "union_tag_not_found":
            key, said = f"{key}.kind", "required, and not set"
        case "literal_error":
            said = f"{first['input']!r}: expected {first['ctx']['expected']}"
        case "secret":  # not what was put in
            said = first["msg"]
        case _:
            said = f"{first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"{key}: {said}{more}"


def _fields(schema: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema has at a location of pydantic's, which holds the tags of unions."""
    here = _sections(schema)
    for part in location:
        inside = [
            _sections(s.model_fields[part].annotation) for s in here if part in s.model_fields
        ]
        tagged = [s for s in here if part in typing.get_args(_annotation(s, "kind"))]
        here = [section for found in inside for section in found] or tagged or here
    return list(dict.fromkeys(name for section in here for name in section.model_fields))


def _sections(annotation: Any) -> list[type[Base]]:
    """The sections that an annotation is made of: itself, or those of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, Base):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def _annotation(section: type[Base], field: str) -> Any:
    found = section.model_fields.get(field)
    return found.annotation if found else None


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean x?)`, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
