"""At a provider that tunes its own models: the hosted fine-tuning API."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config


class OpenAI(config.Base):
    """The fine-tuning API of OpenAI, or of an endpoint that speaks it; the model stays there."""

    kind: Literal["openai"]
    base_url: str
    """Address that the path /fine_tuning/jobs is appended to."""
    api_version: str | None
    """Dated version of an Azure endpoint; null for every other."""
    api_key_env: str | None
    """Name of the environment variable that holds the API key; null for an endpoint that wants
    none."""
    model: str
    """Model that is tuned, as the endpoint knows it."""
    num_epochs: Annotated[int, Field(ge=1)] | None
    """Passes over the examples; null leaves it to the endpoint."""
    batch_size: Annotated[int, Field(ge=1)] | None
    """Examples of one step; null leaves it to the endpoint."""
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | None
    """Scale of the endpoint's own learning rate; null leaves it to the endpoint."""
    suffix: str | None
    """Goes into the name of the tuned model."""
    price_usd_per_mtok: Annotated[float, Field(ge=0)]
    """Price of a million tokens trained on, each counted as often as it is passed, in US
    dollars."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None
    """Most that a training may cost by a count made before it begins; null for no cap."""
    poll_s: Annotated[float, Field(gt=0)]
    """Time between two looks at the job, in seconds."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one answer, in seconds."""
    deadline_s: Annotated[float, Field(gt=0)]
    """Longest time of one request with all its attempts, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)]
    """Tries of one request."""
    backoff_s: Annotated[float, Field(ge=0)]
    """First ceiling of the random wait between two tries, in seconds; it doubles each time."""
    retry_after_cap_s: Annotated[float, Field(ge=0)]
    """Longest wait between two tries, in seconds."""

    @property
    def concurrency(self) -> int:
        return 1

    @model_validator(mode="after")
    def _has_a_worst_case(self) -> Self:
        if self.max_cost_usd is not None and not (self.num_epochs and self.price_usd_per_mtok):
            raise PydanticCustomError(
                "cap",
                "expected num_epochs and price_usd_per_mtok beside max_cost_usd: without them "
                "nothing can be counted before the job begins",
            )
        return self
