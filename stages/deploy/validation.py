"""A request's JSON in, what may be asked of a model out, after TGI's checks in TGI's words."""

import secrets
from typing import Any

from pydantic import BaseModel

from stages.deploy.generation import Sampling

MAX_STOP_SEQUENCES = 4


class Parameters(BaseModel):
    """TGI's GenerateParameters."""

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    # Known to TGI, and refused here unless they ask for nothing:
    best_of: int | None = None
    frequency_penalty: float | None = None
    typical_p: float | None = None
    top_n_tokens: int | None = None
    watermark: bool | None = None
    decoder_input_details: bool | None = None
    grammar: Any = None
    adapter_id: str | None = None


class GenerateRequest(BaseModel):
    inputs: str
    parameters: Parameters | None = None
    stream: bool = False


class Part(BaseModel):
    type: str
    text: str = ""


class ChatMessage(BaseModel):
    role: str
    content: str | list[Part]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's chat request, as far as TGI reads it."""

    messages: list[ChatMessage]
    model: str = "tgi"
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    repetition_penalty: float | None = None
    # Known to OpenAI, and refused here unless they ask for nothing:
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: Any = None
    tools: Any = None
    response_format: Any = None


class RefusalError(Exception):
    """What the client is told instead of an answer."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type


def invalid(message: str) -> RefusalError:
    return RefusalError(422, "validation", f"Input validation error: {message}")


def failed(reason: str) -> RefusalError:
    return RefusalError(424, "generation", f"Request failed during generation: {reason}")


def checked(p: Parameters) -> tuple[Sampling, tuple[str, ...]]:
    """The sampling and the stop sequences, after TGI's checks with its messages."""
    if p.best_of not in (None, 1):
        raise invalid("`best_of` != 1 is not allowed for this endpoint")
    if p.grammar is not None:
        raise invalid("grammar is not supported")
    unsupported(p, "frequency_penalty typical_p top_n_tokens watermark decoder_input_details")
    unsupported(p, "adapter_id")
    if p.temperature is not None and not p.temperature > 0:
        raise invalid("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and not p.repetition_penalty > 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive")
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if p.seed is not None and not 0 <= p.seed < 2**63:
        raise invalid("`seed` must be >= 0 and < 2^63")
    stop = tuple(p.stop or ())
    if len(stop) > MAX_STOP_SEQUENCES:
        raise invalid(
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(stop)}"
        )
    if "" in stop:
        raise invalid("`stop` sequences cannot be empty")
    warped = p.temperature not in (None, 1.0) or p.top_k is not None or p.top_p is not None
    sampling = Sampling(
        sample=bool(p.do_sample) or warped,
        temperature=p.temperature or 1.0,
        top_k=p.top_k,
        top_p=p.top_p,
        repetition_penalty=p.repetition_penalty or 1.0,
        seed=secrets.randbits(63) if p.seed is None else p.seed,
    )
    return sampling, stop


def unsupported(asked: BaseModel, names: str) -> None:
    for name in names.split():
        if getattr(asked, name):
            raise invalid(f"`{name}` is not supported by the embedded server")


def parameters_of(chat: ChatRequest) -> Parameters:
    """A chat request's parameters as TGI's: greedy unless a temperature or top_p is given."""
    if chat.n not in (None, 1):
        raise invalid("`n` != 1 is not supported")
    unsupported(chat, "frequency_penalty presence_penalty logprobs top_logprobs logit_bias tools")
    if chat.response_format not in (None, {"type": "text"}):
        raise invalid("`response_format` is not supported by the embedded server")
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop
    return Parameters(
        max_new_tokens=(
            chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
        ),
        do_sample=bool(chat.temperature),
        temperature=chat.temperature or None,
        # 1 is OpenAI's neutral value and TGI's invalid one; 0 temperature is greedy whatever top_p.
        top_p=None if chat.top_p == 1 or chat.temperature == 0 else chat.top_p,
        repetition_penalty=chat.repetition_penalty,
        seed=chat.seed,
        stop=stop,
    )
