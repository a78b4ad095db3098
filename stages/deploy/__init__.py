"""Weights → endpoint.json: what serves base and tuned, by TGI's API; the embedded server is proven.

`embedded` is our own server in the model environment; `tgi` renders a compose.yaml for the real
one, which is checked as YAML and has not been run by us, for want of a Docker engine; `hosted`
names the models of a provider that tuned one.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import huggingface_hub
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer

from stages.core import config, model, progress, store
from stages.core.errors import PipelineError
from stages.core.model import Hub, Pretrained, Scratch
from stages.core.records import Message

__all__ = ["Config", "run"]


class Embedded(config.Base):
    """Docent's own server of TGI's API and OpenAI's, in the model environment."""

    kind: Literal["embedded"]
    python: str
    """Interpreter of the model environment, which runs the server."""
    host: str
    """Address that `up` listens on; 0.0.0.0 opens the server to the network."""
    max_input_tokens: Annotated[int, Field(gt=0)] | None
    """Longest prompt, in tokens of the model; null leaves one token of max_total_tokens."""
    max_total_tokens: Annotated[int, Field(gt=1)]
    """Longest prompt and answer together, in tokens of the model."""
    max_batch_size: Annotated[int, Field(gt=0)]
    """Requests of one model that are decoded together."""
    max_concurrent_requests: Annotated[int, Field(gt=0)]
    """Requests under way or waiting; one more is answered 429."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Number format of the weights while serving; auto keeps the one that they are stored in."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the models run; auto takes a GPU where there is one."""


class Tgi(config.Base):
    """Hugging Face's text-generation-inference in Docker, one container per model."""

    kind: Literal["tgi"]
    image: str
    """Docker image of TGI with its tag."""
    port: Annotated[int, Field(gt=0, lt=65535)]
    """Loopback port of the tuned model; the base model has the next one."""
    num_shard: Annotated[int, Field(gt=0)]
    """GPUs that each model is split over; the two models together take twice as many."""
    dtype: Literal["float16", "bfloat16"] | None
    """Number format of the weights while serving; null leaves it to TGI."""
    quantize: (
        Literal["awq", "bitsandbytes", "bitsandbytes-nf4", "eetq", "fp8", "gptq", "marlin"] | None
    )
    """Quantization of the weights by TGI; null serves them as they are."""
    max_input_tokens: Annotated[int, Field(gt=0)] | None
    """Longest prompt, in tokens of the model; null leaves one token of max_total_tokens."""
    max_total_tokens: Annotated[int, Field(gt=1)]
    """Longest prompt and answer together, in tokens of the model."""
    max_batch_size: Annotated[int, Field(gt=0)] | None
    """Requests of one model that are decoded together; null leaves it to the GPU's memory."""
    max_concurrent_requests: Annotated[int, Field(gt=0)]
    """Requests under way or waiting; one more is answered 429."""


class Hosted(config.Base):
    """A model that a provider tuned (finetune/launcher=openai), where it is; with its base."""

    kind: Literal["hosted"]
    settings: dict[str, Any]
    """How the endpoint is asked: the keys of a teacher where kind is openai. The model is the one
    that was tuned."""

    @field_validator("settings")
    @classmethod
    def _are_a_teachers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        from stages import llm  # the server, which imports this module, runs without the SDK

        try:
            llm.OpenAI.model_validate_json(json.dumps(settings))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise PydanticCustomError(
                "settings", "{key}: {why}", {"key": key, "why": first["msg"]}
            ) from None
        return settings


Config = Annotated[Embedded | Tgi | Hosted, Field(discriminator="kind")]


def run(cfg: Config, model: model.Config, weights: Path, out: Path) -> dict[str, float]:
    """Describe the endpoint of the two models under `weights`, and prove that it serves."""
    is_hosted = (weights / "hosted.json").exists()
    if is_hosted != isinstance(cfg, Hosted):
        found = "tuned by a provider" if is_hosted else "of our own"
        raise PipelineError(
            f"deploy.kind: {cfg.kind!r}: the model in {weights} is {found}: "
            f"take deploy={'hosted' if is_hosted else 'embedded'}"
        )
    if isinstance(cfg, Hosted):
        return describe_hosted(cfg, weights / "hosted.json", out)
    if cfg.max_total_tokens > model.context_tokens:
        raise PipelineError(
            f"deploy.max_total_tokens: {cfg.max_total_tokens}: the model reads at most "
            f"model.context_tokens {model.context_tokens}; lower it"
        )
    if cfg.max_input_tokens and cfg.max_input_tokens >= cfg.max_total_tokens:
        raise PipelineError(
            f"deploy.max_input_tokens: {cfg.max_input_tokens}: expected less than "
            f"deploy.max_total_tokens {cfg.max_total_tokens}, or null"
        )
    out.mkdir(parents=True, exist_ok=True)
    workspace = out.resolve().parents[1]
    paths, folders = _places(model, weights, workspace)
    template = model.template if isinstance(model, Pretrained) else None
    models = {
        name: {
            "id": name if cfg.kind == "embedded" else "tgi",
            "path": paths[name],
            **describe(folder, template),
        }
        for name, folder in folders.items()
    }
    if model.marks and model.marks[1] not in models["tuned"]["stop"]:
        ends = " or ".join(map(repr, models["tuned"]["stop"]))
        raise PipelineError(
            f"model.format.stop: {model.marks[1]!r}: the tokenizer ends an answer with {ends}: "
            "set it to that, and train again"
        )
    written = None
    if template and cfg.kind == "embedded":
        store.write_text(out / "chat_template.jinja", template)
        written = os.path.relpath(out.resolve() / "chat_template.jinja", workspace)
    match cfg:
        case Embedded():
            command = embedded_command(cfg, paths, written)
        case Tgi():
            compose = out / "compose.yaml"
            store.write_text(compose, render_compose(cfg, paths, folders, out))
            check_compose(compose)
            file = os.path.relpath(compose.resolve(), workspace)
            command = ["docker", "compose", "-f", file, "up", "-d"]
    manifest = {"engine": cfg.kind, "api": "tgi", "models": models, "command": command}
    store.write_json(out / "endpoint.json", manifest)
    store.write(out / "rejects.jsonl", [])
    if cfg.kind == "embedded":
        prove(out / "endpoint.json")
    return {
        "num_models": len(models),
        **{
            f"{name}_mb": round(
                sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6, 3
            )
            for name, folder in folders.items()
        },
    }


def describe_hosted(cfg: Hosted, tuned: Path, out: Path) -> dict[str, float]:
    """Write the endpoint.json of models that are served elsewhere, and ask each one question."""
    about = store.read_json(tuned)
    if about["base_url"].rstrip("/") != cfg.settings["base_url"].rstrip("/"):
        raise PipelineError(
            f"deploy.settings.base_url: {cfg.settings['base_url']!r}: the model was tuned at "
            f"{about['base_url']!r}: expected that"
        )
    models = {
        name: {
            "id": about[name],
            "path": about[name],
            "digest": hashlib.sha256(f"{about['base_url']}\0{about[name]}".encode()).hexdigest(),
            "template_sha256": None,  # the provider's own
            "stop": [],
        }
        for name in ("base", "tuned")
    }
    settings = {key: value for key, value in cfg.settings.items() if key not in ("kind", "model")}
    manifest = {
        "engine": "hosted",
        "api": "openai",
        "models": models,
        "command": [],
        "settings": settings,
    }
    store.write_json(out / "endpoint.json", manifest)
    store.write(out / "rejects.jsonl", [])
    prove(out / "endpoint.json")
    return {"num_models": len(models)}


def _places(
    model: model.Config, weights: Path, workspace: Path
) -> tuple[dict[str, str], dict[str, Path]]:
    """Where base and tuned are: as the manifest writes it, and as a folder on this machine."""

    def relative(folder: Path) -> str:
        return os.path.relpath(folder.resolve(), workspace)

    tuned = weights / "model"
    match model:
        case Scratch():
            base, path = weights / "base", relative(weights / "base")
        case Hub():
            base, path = fetch(model), f"{model.id}@{model.revision}"
        case _:
            base, path = store.locate(model.path, "model.path"), model.path
    return {"base": path, "tuned": relative(tuned)}, {"base": base, "tuned": tuned}


def fetch(hub: Hub) -> Path:
    """The model's files in the hub's local cache, downloaded where they are not."""
    try:
        found = huggingface_hub.snapshot_download(
            hub.id, revision=hub.revision, allow_patterns=list(model.FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PipelineError(
            f"model.id: {hub.id!r} at {hub.revision!r} cannot be fetched: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None
    return Path(found)


def describe(folder: Path, template: str | None) -> dict[str, Any]:
    """What the manifest says of a model's content: digest, template_sha256 and stop."""
    if not any(file.suffix == ".safetensors" for file in model.files(folder)):
        raise PipelineError(
            f"{folder}: no *.safetensors, and no other weights are served; `dvc repro finetune` "
            "makes them"
        )
    text = template or chat_template(folder)
    if text is None:
        raise PipelineError(
            f"{folder}: its tokenizer has no chat template; set model.format or model.chat_template"
        )
    return {
        "digest": model.digest(folder),
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "stop": stop_tokens(folder),
    }


def chat_template(folder: Path) -> str | None:
    """The template that the folder's tokenizer carries, in any of the three places of its time."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found = store.read_json(folder / name).get("chat_template")
            if isinstance(found, list):  # several by name
                found = {each["name"]: each["template"] for each in found}.get("default")
            if found:
                return str(found)
    return None


def stop_tokens(folder: Path) -> list[str]:
    """The tokens that end an answer: generation_config's or config's, and the tokenizer's."""
    stops = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            ids = store.read_json(folder / name).get("eos_token_id")
            if ids is not None and (folder / "tokenizer.json").exists():
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
                several = ids if isinstance(ids, list) else [ids]
                stops |= {tokenizer.id_to_token(id) for id in several}
                break
    if (folder / "tokenizer_config.json").exists():
        named = store.read_json(folder / "tokenizer_config.json").get("eos_token")
        stops.add(named["content"] if isinstance(named, dict) else named)
    return sorted(stop for stop in stops if stop)


def embedded_command(cfg: Embedded, paths: dict[str, str], template: str | None) -> list[str]:
    """The server's command without --port, which is chosen when it starts."""
    options = {
        "--default": "tuned",
        "--host": cfg.host,
        "--max-input-tokens": cfg.max_input_tokens or cfg.max_total_tokens - 1,
        "--max-total-tokens": cfg.max_total_tokens,
        "--max-batch-size": cfg.max_batch_size,
        "--max-concurrent-requests": cfg.max_concurrent_requests,
        "--dtype": cfg.dtype,
        "--device": cfg.device,
    }
    if template:
        options["--chat-template"] = template
    return [
        cfg.python,
        "-m",
        "stages.deploy.server",
        "--models",
        *(f"{name}={path}" for name, path in paths.items()),
        *(str(word) for option in options.items() for word in option),
    ]


def prove(manifest: Path) -> None:
    """Start the server, ask each model one question, and end it; PipelineError where one fails."""
    # Here, and not above: the server runs from this package in the model environment, which lacks
    # what stages.answer needs.
    from stages.answer import endpoint

    progress.note("one question to each model")
    with endpoint.start(manifest) as server:
        for done, name in enumerate(server.models, 1):
            question = Message(role="user", content="What is this about?")
            answer = server.complete(name, [question], max_tokens=8)
            if not answer.tokens:
                raise PipelineError(f"the model {name} answered with no token at all")
            progress.step(done, len(server.models), "models that answer")


def render_compose(cfg: Tgi, paths: dict[str, str], folders: dict[str, Path], out: Path) -> str:
    """A compose file with one TGI per model; relative paths, from its own folder."""
    return (
        "# Rendered by the stage deploy. `python -m stages up` runs it; by hand:\n"
        "# docker compose -f data/deploy/compose.yaml up -d\n"
    ) + yaml.safe_dump(
        {
            "name": "docent",
            "services": {
                name: _service(cfg, name, paths[name], folders[name], out) for name in paths
            },
            "volumes": {"hub": {}},
        },
        sort_keys=False,
        width=1000,
    )


def _service(cfg: Tgi, name: str, path: str, folder: Path, out: Path) -> dict[str, Any]:
    hub_id, _, revision = path.partition("@")
    volumes = ["hub:/data"]
    if revision:
        command = ["--model-id", hub_id, "--revision", revision]
    else:
        command = ["--model-id", f"/models/{name}"]
        mounted = (
            path if Path(path).is_absolute() else os.path.relpath(folder.resolve(), out.resolve())
        )
        volumes.append(f"{mounted}:/models/{name}:ro")
    options = {
        "--max-input-tokens": cfg.max_input_tokens or cfg.max_total_tokens - 1,
        "--max-total-tokens": cfg.max_total_tokens,
        "--max-batch-size": cfg.max_batch_size,
        "--max-concurrent-requests": cfg.max_concurrent_requests,
        "--num-shard": cfg.num_shard,
        "--dtype": None if cfg.quantize else cfg.dtype,
        "--quantize": cfg.quantize,
        "--port": 80,
    }
    for option, value in options.items():
        if value is not None:
            command += [option, str(value)]
    port = cfg.port + (name == "base")
    first = cfg.num_shard * (name == "base")  # base has the GPUs after tuned's
    return {
        "image": cfg.image,
        "command": command,
        "ports": [f"127.0.0.1:${{{name.upper()}_PORT:-{port}}}:80"],
        "volumes": volumes,
        "shm_size": "1g",
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", "http://127.0.0.1:80/health"],
            "interval": "10s",
            "start_period": "600s",
        },
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [
                        {
                            "driver": "nvidia",
                            "device_ids": [str(first + i) for i in range(cfg.num_shard)],
                            "capabilities": ["gpu"],
                        }
                    ]
                }
            }
        },
    }


def check_compose(path: Path) -> None:
    """Read the file back: each service has what Compose needs, and its mounts exist."""
    read = yaml.safe_load(path.read_text())
    for name, service in read["services"].items():
        missing = {"image", "command", "ports", "volumes"} - service.keys()
        assert not missing, f"{path}: services.{name} lacks {missing}"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source not in read["volumes"] and not (path.parent / source).is_dir():
                raise PipelineError(f"{path}: services.{name}: {source}: no such folder to mount")
