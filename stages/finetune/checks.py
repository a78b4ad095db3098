"""What must be true before and after a training, each broken one told in a line."""

from pathlib import Path

from tokenizers import Tokenizer

from stages.core import model as base
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.finetune.hardware import Machine
from stages.finetune.settings import Config, Qlora


def machine(cfg: Config, found: Machine) -> None:
    if isinstance(cfg, Qlora) and not (found.cuda and found.bitsandbytes):
        lack = "CUDA" if not found.cuda else "bitsandbytes"
        raise PipelineError(
            f"finetune.kind: 'qlora': it needs CUDA and bitsandbytes, and {cfg.python} finds no "
            f"{lack} here: take finetune=lora, or set finetune.device=cuda if it trains elsewhere"
        )
    if found.num_gpus and cfg.num_processes > found.num_gpus:
        raise PipelineError(
            f"finetune.num_processes: {cfg.num_processes}: each needs a GPU of its own, and there "
            f"are {found.num_gpus}: set it to that at most"
        )
    if idle := max(0, found.num_gpus - cfg.num_processes):
        progress.note(
            f"{idle} of {found.num_gpus} GPUs are idle: finetune.num_processes={found.num_gpus} "
            "uses all"
        )


def local(model: base.Local) -> Path:
    """The model's folder, absolute; an error names what it lacks."""
    folder = store.locate(model.path, "model.path").absolute()
    config, *tokenizer = ("config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
    for names in ([config], tokenizer, ["*.safetensors"]):
        if not any(any(folder.glob(name)) for name in names):
            raise PipelineError(
                f"model.path: {model.path!r} has no {' or '.join(names)}: expected a folder that "
                "save_pretrained() of a model and of its tokenizer wrote"
            )
    if model.template is None and not has_template(folder):
        raise PipelineError(
            f"model.path: the tokenizer in {model.path!r} carries no chat template: "
            "set model.format or model.chat_template"
        )
    if model.marks and (end := end_token(folder)) != model.marks[1]:
        raise PipelineError(
            f"model.format.stop: {model.marks[1]!r}: the tokenizer in {model.path!r} ends a text "
            f"with {end!r}: set it to that, so that training teaches where an answer ends"
        )
    return folder


def end_token(folder: Path) -> str | None:
    settings = folder / "tokenizer_config.json"
    found = store.read_json(settings).get("eos_token") if settings.exists() else None
    return found["content"] if isinstance(found, dict) else found


def has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    return any(folder.glob("chat_template*")) or (
        settings.exists() and "chat_template" in store.read_json(settings)
    )


def end_turns(model: base.Config, folder: Path) -> None:
    """See that a server ends an answer where the template ends a turn."""
    path = folder / "generation_config.json"
    if not (isinstance(model, base.Pretrained) and model.end_of_turn and path.exists()):
        return
    end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(model.end_of_turn)
    if end is None:
        raise PipelineError(
            f"model.end_of_turn: {model.end_of_turn!r}: the tokenizer has no such token: set it to "
            "the one that the chat template writes after an answer"
        )
    settings = store.read_json(path)
    known = settings.get("eos_token_id")
    ends = known if isinstance(known, list) else [known] if known is not None else []
    if end not in ends:
        store.write_json(path, settings | {"eos_token_id": [*ends, end]})


def counts(
    cfg: Config,
    model: base.Config,
    what: str,
    num_given: int,
    num_rejected: int,
    num_trained: int,
) -> None:
    """Every example is trained on or rejected, and not too many are rejected."""
    if num_given != num_trained + num_rejected:
        raise PipelineError(
            f"Axolotl trained on {num_trained} of {num_given} {what}, though only {num_rejected} "
            "exceed the context: a key of finetune.axolotl drops the others; remove it"
        )
    if num_rejected > cfg.max_reject_rate * num_given:
        raise PipelineError(
            f"finetune.max_reject_rate: {cfg.max_reject_rate}: {num_rejected} of {num_given} "
            f"{what} are longer than model.context_tokens ({model.context_tokens}): raise either"
        )
