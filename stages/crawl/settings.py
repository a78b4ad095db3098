"""The section `crawl`: how politely and how far a source is fetched, and what makes a document."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.crawl.guard.addresses import allowance


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError(
            "regular_expression", "not a regular expression: {why}", {"why": str(error)}
        ) from None
    return pattern


def _without_secret(place: str) -> str:
    """An address of the web without a user, any other one without a password: it is committed, in
    params.yaml and the snapshot, and cited.
    """
    scheme, _, rest = place.partition("://")
    user = re.match(r"[^/?#]*@", rest)
    if user and (":" in user[0] or scheme.lower() in ("http", "https")):
        raise PydanticCustomError(
            "secret",
            "a user or a password in an address would be committed and cited: take it out; give "
            "what needs one as a copy on this machine",
        )
    return place


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PydanticCustomError(
            "address", "expected an address such as https://example.org/docs/"
        )
    return url


def _host(entry: str) -> str:
    try:
        allowance(entry)
    except ValueError:
        raise PydanticCustomError(
            "host", "expected a host such as wiki.example, 10.0.0.7:8080 or [fd00::1]:80"
        ) from None
    return entry


Host = Annotated[str, AfterValidator(_host)]
Pattern = Annotated[str, AfterValidator(_regular_expression)]
Address = Annotated[str, AfterValidator(_without_secret), AfterValidator(_address)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_without_secret)]
Name = Annotated[str, Field(min_length=1)]


Kind = Literal[
    "email",
    "phone",
    "credit_card",
    "iban",
    "ssn",
    "ip_address",
    "api_key",
    "jwt",
    "private_key",
    "url_credentials",
    "secret",
]


class Scrub(config.Base):
    """Personal data and secrets, which a placeholder such as `<email>` stands for in documents."""

    kinds: list[Kind]
    """What is replaced: `email`, `phone`, `credit_card`, `iban`, `ssn` (of the USA), `ip_address`
    (public ones), `api_key` (of AWS, GitHub, GitLab, Slack, Google, Stripe, OpenAI, Anthropic,
    Hugging Face, npm, PyPI, SendGrid), `jwt`, `private_key`, `url_credentials`, `secret` (a random
    value that is given to a password or a key). Empty: nothing."""
    allow: list[Pattern]
    """Regular expressions: a finding in which one of them matches is kept, as `@acme[.]io$`."""


class Config(config.Base):
    max_pages: Annotated[int, Field(gt=0)]
    """Most addresses that a crawl asks for."""
    max_depth: Annotated[int, Field(ge=0)]
    """Longest way from the start page, in links."""
    max_alike: Annotated[int, Field(gt=0)]
    """Most addresses that differ in their date or their query only: calendars, lists to filter."""
    concurrent_requests: Annotated[int, Field(gt=0)]
    """Requests under way to a host at the same time."""
    delay_s: Annotated[float, Field(ge=0)]
    """Pause between two requests to a host, in seconds; a served folder is read without it."""
    retry_s: Annotated[float, Field(ge=0)]
    """Pause before an address that failed is asked again, in seconds; before a third try twice."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one page, in seconds; a page is tried three times."""
    user_agent: Annotated[str, Field(min_length=1)]
    """How the crawler names itself to sites, with an address where its operator is told of."""
    obey_robots: bool
    """Whether the site's robots.txt is obeyed, its crawl delay included."""
    full_fetch_days: Annotated[float, Field(ge=0)]
    """Age of a page, in days, from which a refresh does not believe that it is unchanged."""
    max_gone_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of a source's pages that a refresh may find gone before it counts as failed."""
    parse_timeout_s: Annotated[float, Field(gt=0)]
    """Most processor time that parsing one page or file may take, in seconds."""
    parse_memory_mb: Annotated[int, Field(gt=0)]
    """Most memory that parsing one page or file may take, in MiB."""
    min_chars: Annotated[int, Field(ge=0)]
    """Shortest text that makes a page a document, in characters of Markdown."""
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]]
    """Languages of documents, by ISO 639-1, such as `en`; empty: any. Code does not count."""
    boilerplate_share: Annotated[float, Field(gt=0, le=1)] | None
    """Share of a site's pages, at least five, from which a line that they repeat is left out."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None
    """Jaccard index, of five words in a row, from which a page is a copy of an earlier address."""
    scrub: Scrub
    """Personal data and secrets to replace, before anything else reads a document."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of pages that may fail or be too short before the crawl counts as failed."""


FETCH = ("max_pages", "max_depth", "max_alike", "user_agent", "obey_robots")
"""The keys that decide what a refresh fetches: one of them changed, a snapshot is out of date."""

FETCHING = (
    *FETCH,
    "concurrent_requests",
    "delay_s",
    "retry_s",
    "timeout_s",
    "full_fetch_days",
)
"""The keys that a spider is given."""
