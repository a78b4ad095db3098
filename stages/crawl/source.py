"""The section `source`: of what kind it is, and what each kind does."""

import contextlib
from collections import Counter
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.crawl import code, files, table, web
from stages.crawl.code import Code
from stages.crawl.files import Files
from stages.crawl.page import Page
from stages.crawl.pages import Answered, Body, Crawl
from stages.crawl.settings import FETCH, Config
from stages.crawl.table import Table
from stages.crawl.web import Web

Single: TypeAlias = Web | Files | Code | Table
"""Of one kind; each kind's module has the same functions."""


class Many(config.Base):
    """Several sources, of any kinds."""

    kind: Literal["many"]
    sources: Annotated[list[Annotated[Single, Field(discriminator="kind")]], Field(min_length=1)]
    """The sources, each with a name of its own."""

    @model_validator(mode="after")
    def _named_apart(self) -> "Many":
        twice = [name for name, n in Counter(part.name for part in self.sources).items() if n > 1]
        if twice:
            raise PydanticCustomError(
                "names", "two sources are named {name}: each needs its own", {"name": twice[0]}
            )
        return self


Source = Annotated[Single | Many, Field(discriminator="kind")]


def parts(source: Source) -> list[Single]:
    """The sources that a source is made of."""
    return source.sources if isinstance(source, Many) else [source]


@contextlib.contextmanager
def named(whole: Source, part: Single) -> Iterator[None]:
    """Put the name of one of many sources in front of its error."""
    try:
        yield
    except PipelineError as error:
        if isinstance(whole, Many):
            raise PipelineError(f"{part.name}: {error}") from None
        raise


def digest(cfg: Config, source: Single) -> str:
    """Of all that decides what is fetched."""
    return identify(source.model_dump(), cfg.model_dump(include=set(FETCH)))


def is_local(source: Single) -> bool:
    """Is it read by the stage itself, on this machine, without a snapshot?"""
    return isinstance(source, Web) and source.serve_dir is not None


def _module(source: Single) -> ModuleType:
    return {Web: web, Files: files, Code: code, Table: table}[type(source)]


def fetch(cfg: Config, source: Single, crawl: Crawl) -> Generator[int, None, dict[str, int]]:
    """Bring what the source holds into the crawl; at each address, how many are known so far.

    In the end, how many addresses were left out, by the limit.
    """
    steps: Generator[int, None, dict[str, int]] = _module(source).fetch(cfg, source, crawl)
    return steps


def parse(source: Single, address: str, body: Body) -> list[Page]:
    """The pages that stand at an address; UnreadableError where there are none."""
    pages: list[Page] = _module(source).parse(source, address, body)
    return pages


def publish(source: Single, address: str) -> str:
    """The address as readers know it."""
    return str(_module(source).publish(source, address))


def explain(source: Single, answered: Answered) -> str:
    """What is to be said of an address that gave no page."""
    return str(_module(source).explain(source, answered))


def place(source: Single) -> str:
    """The key and the value that say where the source is, as an error names them."""
    return str(_module(source).place(source))
