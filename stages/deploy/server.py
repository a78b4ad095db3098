"""HTTP requests in, generated text out: TGI's routes and OpenAI's, over one engine per model.

Run in the model environment: `python -m stages.deploy.server --models tuned=FOLDER …`. Shapes,
codes and messages are those of huggingface/text-generation-inference (docs/openapi.json,
router/src/validation.rs), whose API is the contract. Where it differs: an error that is known
before the first token has its HTTP status in a stream too; chat is greedy unless told otherwise,
and leaves the stop sequence out of its text, as OpenAI does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import uvicorn
from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stages.deploy.generation import End, Event, Failure, Generation, Token
from stages.deploy.validation import (
    MAX_STOP_SEQUENCES,
    ChatRequest,
    GenerateRequest,
    Parameters,
    Part,
    RefusalError,
    checked,
    failed,
    invalid,
    parameters_of,
)

if TYPE_CHECKING:
    from stages.deploy.engine import Engine

MAX_PAYLOAD_BYTES = 2_000_000
DEFAULT_NEW_TOKENS = 100  # of TGI's routes; chat takes what is left, at most 1024
ANY_MODEL = ("tgi", "dummy")  # what TGI's users and huggingface_hub say where they need no name
DRAIN_S = 20  # for requests under way at SIGTERM

T = TypeVar("T")


# --- the service -------------------------------------------------------------------------------


class Limits(NamedTuple):
    max_input_tokens: int
    max_total_tokens: int
    max_concurrent_requests: int


class Service:
    """The engines, and how many requests they have."""

    def __init__(self, default: str, names: list[str], limits: Limits, template: str | None):
        self.default = default
        self.names = names
        self.limits = limits
        self.template = template
        self.engines: dict[str, Engine] = {}
        self.num_requests = 0

    @property
    def ready(self) -> bool:
        return len(self.engines) == len(self.names) and all(
            engine.alive for engine in self.engines.values()
        )

    def engine(self, name: str) -> "Engine":
        if not self.ready:
            raise RefusalError(503, "healthcheck", "unhealthy")
        if name in ANY_MODEL:
            name = self.default
        if name not in self.engines:
            known = ", ".join(self.names)
            raise RefusalError(
                404, "not_found", f"model {name!r} does not exist here: one of {known}"
            )
        return self.engines[name]

    @contextlib.asynccontextmanager
    async def generating(
        self,
        engine: "Engine",
        prompt: str,
        parameters: Parameters,
        default_new_tokens: int,
        *,
        stream: bool,
        special_tokens: bool,
    ) -> AsyncIterator["Running"]:
        """A slot, and a request of it in the engine; leaving frees both at once."""
        if self.num_requests >= self.limits.max_concurrent_requests:
            raise RefusalError(429, "overloaded", "Model is overloaded")
        self.num_requests += 1
        generation = None
        try:
            sampling, stop = checked(parameters)
            ids = self._encode(engine, prompt, parameters.truncate, special_tokens)
            room = self.limits.max_total_tokens - len(ids)
            new = parameters.max_new_tokens or max(1, min(room, default_new_tokens))
            if new > room:
                raise invalid(
                    f"`inputs` tokens + `max_new_tokens` must be <= {self.limits.max_total_tokens}."
                    f" Given: {len(ids)} `inputs` tokens and {new} `max_new_tokens`"
                )
            if len(ids) > self.limits.max_input_tokens:
                raise invalid(
                    f"`inputs` must have less than {self.limits.max_input_tokens} tokens."
                    f" Given: {len(ids)}"
                )
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[Event] = asyncio.Queue()

            def emit(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                    loop.call_soon_threadsafe(events.put_nowait, event)

            generation = Generation(ids, new, emit, sampling, stop, stream)
            engine.submit(generation)
            yield Running(generation, events, len(ids))
        finally:
            self.num_requests -= 1
            if generation:
                engine.cancel(generation)

    def _encode(
        self, engine: "Engine", prompt: str, truncate: int | None, special_tokens: bool
    ) -> list[int]:
        if not prompt:
            raise invalid("`inputs` cannot be empty")
        limit = self.limits.max_input_tokens
        if truncate is not None and not 0 < truncate <= limit:
            raise invalid(
                f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}"
            )
        ids = engine.tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"]
        return list(ids[-truncate:] if truncate else ids)

    def chat_prompt(self, engine: "Engine", chat: ChatRequest) -> str:
        turns = []
        for message in chat.messages:
            parts = message.content
            if isinstance(parts, str):
                parts = [Part(type="text", text=parts)]
            if any(part.type != "text" for part in parts):
                raise invalid("image modality is not supported")
            turns.append({"role": message.role, "content": "".join(part.text for part in parts)})
        if not turns:
            raise invalid("`messages` cannot be empty")
        template = self.template  # None: the tokenizer's own
        try:  # transformers renders in Jinja's sandbox
            return str(
                engine.tokenizer.apply_chat_template(
                    turns, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except (TemplateError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise RefusalError(422, "template_error", f"Template error: {said}") from None


class Running(NamedTuple):
    generation: Generation
    events: asyncio.Queue[Event]
    num_prompt_tokens: int

    async def tokens(self) -> AsyncIterator[tuple[Token, End | None]]:
        """The tokens, the last one with its end; raises where the engine failed."""
        while True:
            event = await self.events.get()
            if isinstance(event, Failure):
                raise failed(event.reason)
            yield event
            if event[1]:
                return

    async def end(self) -> End:
        """The end of the generation, whatever comes before it."""
        return await anext(end async for _, end in self.tokens() if end)


async def unless_left(request: Request, answer: Awaitable[T]) -> T:
    """The answer; a refusal that nobody reads if the client leaves before it."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving, answering = asyncio.ensure_future(disconnected()), asyncio.ensure_future(answer)
    try:
        await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise RefusalError(499, "incomplete_generation", "the client left")
        return answering.result()
    finally:
        leaving.cancel()
        answering.cancel()


class Stream(StreamingResponse):
    """Server-sent events that hold a slot until the last is read, or the client leaves."""

    def __init__(
        self, lines: AsyncIterator[str], first: str, slot: contextlib.AsyncExitStack
    ) -> None:
        async def all_lines() -> AsyncIterator[str]:
            yield first
            async for line in lines:
                yield line

        super().__init__(all_lines(), media_type="text/event-stream")
        self.headers["X-Accel-Buffering"] = "no"
        self.slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.slot:
            await super().__call__(scope, receive, send)


async def streamed(
    request: Request, slot: contextlib.AsyncExitStack, lines: AsyncGenerator[str, None]
) -> Stream:
    """A stream whose first event has come: an error before it can still set the status."""
    async with slot:
        first = await unless_left(request, lines.__anext__())
        return Stream(lines, first, slot.pop_all())


def event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# --- TGI's routes ------------------------------------------------------------------------------


def token_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
    }


async def generate(request: Request) -> Response:
    """POST / (either), /generate and /generate_stream."""
    service: Service = request.app.state.service
    path = request.url.path
    asked = await body(request, GenerateRequest)
    p = asked.parameters or Parameters()
    stream = path == "/generate_stream" or (path == "/" and asked.stream)
    slot = contextlib.AsyncExitStack()
    async with slot:
        running = await slot.enter_async_context(
            service.generating(
                service.engine("tgi"),
                asked.inputs,
                p,
                DEFAULT_NEW_TOKENS,
                stream=stream,
                special_tokens=True,
            )
        )
        prefix = asked.inputs if p.return_full_text else ""
        if stream:
            return await streamed(
                request, slot.pop_all(), tgi_events(running, prefix, bool(p.details))
            )
        end = await unless_left(request, running.end())
        answer: dict[str, Any] = {"generated_text": prefix + end.text}
        if p.details:
            answer["details"] = {
                **details_json(running, end),
                "prefill": [],
                "tokens": [token_json(token) for token in end.tokens],
            }
        # A list, as the Inference API has it, and only at `/`.
        return JSONResponse([answer] if path == "/" else answer)


def details_json(running: Running, end: End) -> dict[str, Any]:
    sampling = running.generation.sampling
    return {
        "finish_reason": end.finish_reason,
        "generated_tokens": len(end.tokens),
        "seed": sampling.seed if sampling.sample else None,
    }


async def tgi_events(running: Running, prefix: str, details: bool) -> AsyncGenerator[str, None]:
    index = 0
    try:
        async for token, end in running.tokens():
            index += 1
            yield event(
                {
                    "index": index,
                    "token": token_json(token),
                    "generated_text": prefix + end.text if end else None,
                    "details": {
                        **details_json(running, end),
                        "input_length": running.num_prompt_tokens,
                    }
                    if end and details
                    else None,
                }
            )
    except RefusalError as refusal:
        if not index:
            raise
        yield event({"error": str(refusal), "error_type": refusal.error_type})


async def info(request: Request) -> Response:
    service: Service = request.app.state.service
    engine = service.engine("tgi")
    return JSONResponse(
        {
            "model_id": service.default,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "model_dtype": engine.dtype,
            "model_device_type": engine.device,
            "max_concurrent_requests": service.limits.max_concurrent_requests,
            "max_best_of": 1,
            "max_stop_sequences": MAX_STOP_SEQUENCES,
            "max_input_tokens": service.limits.max_input_tokens,
            "max_total_tokens": service.limits.max_total_tokens,
            "max_batch_size": engine.max_batch_size,
            "validation_workers": 1,
            "max_client_batch_size": 1,
            "router": "docent-embedded",
            "version": "1",
            "sha": None,
            "docker_label": None,
        }
    )


async def health(request: Request) -> Response:
    service: Service = request.app.state.service
    if not service.ready:
        raise RefusalError(503, "healthcheck", "unhealthy")
    return Response()


# --- OpenAI's routes ---------------------------------------------------------------------------


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    chat = await body(request, ChatRequest)
    engine = service.engine(chat.model)
    slot = contextlib.AsyncExitStack()
    async with slot:
        running = await slot.enter_async_context(
            service.generating(
                engine,
                service.chat_prompt(engine, chat),
                parameters_of(chat),
                1024,
                stream=chat.stream,
                special_tokens=False,  # the template writes its own
            )
        )
        common = {
            "id": f"chatcmpl-{secrets.randbits(64):016x}",
            "created": int(time.time()),
            "model": service.default if chat.model in ANY_MODEL else chat.model,
            "system_fingerprint": "docent-embedded",
        }
        if chat.stream:
            usage = bool(chat.stream_options and chat.stream_options.include_usage)
            common["object"] = "chat.completion.chunk"
            return await streamed(request, slot.pop_all(), chat_events(running, common, usage))
        end = await unless_left(request, running.end())
        return JSONResponse(
            {
                **common,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": end.text[: end.stop_at]},
                        "logprobs": None,
                        "finish_reason": openai_reason(end),
                    }
                ],
                "usage": usage_json(running, end),
            }
        )


def openai_reason(end: End) -> str:
    return "length" if end.finish_reason == "length" else "stop"


def usage_json(running: Running, end: End) -> dict[str, int]:
    prompt, completion = running.num_prompt_tokens, len(end.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def chat_events(
    running: Running, common: dict[str, Any], usage: bool
) -> AsyncGenerator[str, None]:
    """Chunks of text that cannot turn out to be the start of a stop sequence."""

    def chunk(content: str, reason: str | None) -> str:
        delta = {"role": "assistant", "content": content}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**common, "choices": [choice]})

    text, sent, begun = "", 0, False
    try:
        async for token, end in running.tokens():
            text += "" if token.special else token.text
            if end is None:
                safe = len(text) - withheld(text, running.generation.stop)
            else:
                text, safe = end.text, len(end.text) if end.stop_at is None else end.stop_at
            if end or safe > sent or not begun:
                yield chunk(text[sent:safe], openai_reason(end) if end else None)
                sent, begun = max(sent, safe), True
            if end and usage:
                yield event({**common, "choices": [], "usage": usage_json(running, end)})
    except RefusalError as refusal:
        if not begun:
            raise
        yield event(openai_error(refusal))
    yield "data: [DONE]\n\n"


def withheld(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of the text may be the start of a stop sequence."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    listed = [
        {"id": name, "object": "model", "created": 0, "owned_by": "docent"}
        for name in service.names
    ]
    return JSONResponse({"object": "list", "data": listed})


# --- errors, and reading a body ----------------------------------------------------------------


async def body(request: Request, schema: type[Any]) -> Any:
    """The request's JSON by its schema; at most 2 MB are read."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_PAYLOAD_BYTES:
            raise RefusalError(
                413, "validation", f"payload is larger than {MAX_PAYLOAD_BYTES} bytes"
            )
    try:
        return schema.model_validate_json(bytes(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise invalid(f"{where + ': ' if where else ''}{first['msg']}") from None


def openai_error(refusal: RefusalError) -> dict[str, Any]:
    return {
        "error": {
            "message": str(refusal),
            "type": refusal.error_type,
            "http_status_code": refusal.status,
        },
        "error_type": refusal.error_type,  # TGI's own client looks for it here
    }


async def refused(request: Request, refusal: Exception) -> Response:
    if not isinstance(refusal, RefusalError):  # our bug; Starlette logs its traceback
        words = "Incomplete generation: see the server's log"
        refusal = RefusalError(500, "incomplete_generation", words)
    told = {"error": str(refusal), "error_type": refusal.error_type}
    if request.url.path.startswith("/v1/"):
        told = openai_error(refusal)
    return JSONResponse(told, status_code=refusal.status)


# --- the process -------------------------------------------------------------------------------


def app(service: Service) -> Starlette:
    routes = [
        *(Route(p, generate, methods=["POST"]) for p in ("/", "/generate", "/generate_stream")),
        Route("/info", info),
        Route("/health", health),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/models", models),
    ]
    served = Starlette(
        routes=routes, exception_handlers={RefusalError: refused, Exception: refused}
    )
    served.state.service = service
    return served


def end_with_parent() -> None:
    """End when standard input does: its other end is held by the process that started this one.

    Unlike PR_SET_PDEATHSIG it also works where the *thread* that started us ends first.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="stages.deploy.server", description=__doc__)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--default", required=True, help="the model of TGI's routes")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--announce", type=Path, help="file that gets {port, pid}")
    parser.add_argument("--end-with-parent", action="store_true", help="end when stdin does")
    parser.add_argument("--max-input-tokens", type=int, required=True)
    parser.add_argument("--max-total-tokens", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--max-concurrent-requests", type=int, required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--chat-template", type=Path, help="in place of the tokenizers' own")
    args = parser.parse_args(arguments)
    if args.end_with_parent:
        end_with_parent()

    listening = socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((args.host, args.port))
    except OSError as error:
        print(f"--port {args.port}: {error.strerror}", file=sys.stderr)
        return 1

    paths: dict[str, str] = dict(model.split("=", 1) for model in args.models)
    limits = Limits(args.max_input_tokens, args.max_total_tokens, args.max_concurrent_requests)
    template = args.chat_template.read_text() if args.chat_template else None
    service = Service(args.default, list(paths), limits, template)
    # Idle connections outlive the clients' pools: none is closed under a request.
    settings = uvicorn.Config(
        app(service),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = uvicorn.Server(settings)
    failed_to_load = False

    def load() -> None:
        nonlocal failed_to_load
        try:
            from stages.deploy.engine import Engine  # seconds long: the port is open by then

            for name, path in paths.items():
                service.engines[name] = Engine(
                    path, dtype=args.dtype, device=args.device, max_batch_size=args.max_batch_size
                )
        finally:
            server.should_exit = failed_to_load = not service.ready

    # uvicorn raises the signal again once it has drained: that is a clean end, not a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    listening.listen(2048)
    if args.announce:
        told = json.dumps({"port": listening.getsockname()[1], "pid": os.getpid()})
        beside = args.announce.with_name(f".{args.announce.name}.{os.getpid()}")
        beside.write_text(told)
        beside.replace(args.announce)
    threading.Thread(target=load, daemon=True).start()
    server.run(sockets=[listening])
    return int(failed_to_load)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for a thread that loads or decodes
