"""Axolotl plugin (model environment): from trainer events to a report of JSON lines; CPU training.

`PYTHONPATH` holds this folder and the YAML says `plugins: [docent_axolotl.Plugin]`; the report's
path comes in DOCENT_REPORT. Without it the plugin reports nothing, so that a rendered YAML also
runs by hand. On a host with CUDA nothing of torch, Accelerate or DeepSpeed is changed; what else
the plugin does is done there too: the seed, what of a chat is learned, how prepared examples are
saved, the checks of keys, room, weights and loss, the seals of checkpoints, and counting tokens.
"""

import ctypes
import difflib
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from axolotl.integrations.base import (  # type: ignore[import-not-found]
    BasePlugin,
    PluginManager,
)
from transformers import TrainerCallback, set_seed  # type: ignore[import-not-found]

SEAL = "docent.json"
"""Of a checkpoint; stages/finetune/checkpoints.py reads it."""
TOLD = ("loss", "eval_loss", "learning_rate", "rewards/accuracies", "rewards/margins")
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


def report(**row: Any) -> None:
    """Append a row for the stage that launched us; only the first process speaks."""
    path = os.environ.get("DOCENT_REPORT")
    if path and os.environ.get("RANK", "0") == "0":
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fail(message: str) -> None:
    report(error=message)
    raise SystemExit(message)


class Plugin(BasePlugin):  # type: ignore[misc]
    """Checks the YAML's keys, reports progress, and lets a host without CUDA train."""

    autocast = False
    """Whether a CPU multiplies in bfloat16."""

    def register(self, cfg: Any) -> None:
        if sys.platform == "linux":
            # torchrun does not outlive the stage, nor we torchrun, even when it is killed with -9.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        refuse_unknown_keys(cfg)
        if not torch.cuda.is_available():
            # Axolotl knows bfloat16 of a GPU only, where it is the weights' own type.
            self.autocast = cfg.get("bf16") is True
            cfg["bf16"] = False
            train_on_cpu(cfg)

    def pre_model_load(self, cfg: Any) -> None:
        # Axolotl seeds only inside the trainer: too late for random weights and adapters.
        set_seed(cfg.seed)

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Report the examples that are too long, which Axolotl is about to drop."""
        save_in_process()
        learn_from_the_end_of_the_prompt()
        datasets = [*cfg.datasets, *(cfg.test_datasets or [])]
        if datasets[0]["type"] == "completion" or os.environ.get("RANK", "0") != "0":
            return
        from axolotl.loaders import load_tokenizer  # type: ignore[import-not-found]

        try:
            tokenizer = load_tokenizer(cfg)
            tokens = render(cfg, tokenizer)
        except ValueError as error:
            if "chat_template" in str(error):
                fail(
                    f"model.chat_template: the tokenizer of {cfg.base_model!r} carries no chat "
                    "template: set model.format or model.chat_template"
                )
            raise
        for dataset in datasets:
            # Not splitlines: U+2028 in a text ends no row.
            for line in filter(None, Path(dataset["path"]).read_text("utf-8").split("\n")):
                example = json.loads(line)
                longest = max(num_tokens(cfg, tokenizer, tokens, example))
                if longest > cfg.sequence_len:
                    report(id=example["id"], num_tokens=longest)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        # The filter would hide a NaN by repeating the loss before it.
        arguments: dict[str, Any] = {
            "logging_nan_inf_filter": False,
            "include_num_input_tokens_seen": "non_padding",
        }
        if self.autocast:
            arguments |= {"bf16": True, "use_cpu": True}  # the weights stay float32
        return arguments

    def post_model_load(self, cfg: Any, model: Any) -> None:
        # Axolotl turns sampling on in the saved generation config; the model's own is kept.
        self.do_sample = model.generation_config.do_sample

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
        report(
            num_parameters=parameters,
            num_examples=len(trainer.train_dataset),
            num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        )
        return [Repeatable(), Reporter()]

    def post_train(self, cfg: Any, model: Any) -> None:
        check_finite(model, "the trained weights")
        model.generation_config.do_sample = self.do_sample
        # Off while training; saved so, a server would compute each token from the start again.
        model.generation_config.use_cache = model.config.use_cache = True


def check_finite(model: Any, what: str) -> None:
    """End the training where this process holds a weight that is no number."""
    for name, parameter in model.named_parameters():
        # Under ZeRO-3 a parameter is empty, and this process's part of it beside it.
        if not torch.isfinite(getattr(parameter, "ds_tensor", parameter)).all():
            fail(f"{what} are not finite (first: {name}): lower the learning rate")


def num_tokens(
    cfg: Any, tokenizer: Any, tokens: Callable[..., str], example: dict[str, Any]
) -> list[int]:
    """Of an example, or of a prompt with each of its two answers, as Axolotl counts them."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    if "chosen" not in example:
        return [count(tokens(example["messages"]))]
    pair = preferences(cfg)[0](example, tokenizer)
    return [count(pair["prompt"]) + count(pair[name]) for name in ("chosen", "rejected")]


def learn_from_the_end_of_the_prompt() -> None:
    """Let all be learned that a model writes after a server's prompt, such as a space before.

    Axolotl learns an answer's own text: what a template puts before it would be left to chance.
    """
    from axolotl.prompt_strategies.chat_template import (  # type: ignore[import-not-found]
        ChatTemplateStrategy,
    )

    find_turn = ChatTemplateStrategy.find_turn
    if getattr(find_turn, "from_the_prompt", False):
        return

    def find_answer(
        self: Any, turns: Any, turn_idx: int, tools: Any = None, **more: Any
    ) -> tuple[int, int]:
        start, end = find_turn(self, turns, turn_idx, tools, **more)
        if start > 0 and turn_idx > 0 and turns[turn_idx]["role"] == "assistant":
            build = self.prompter.build_prompt
            prompt = build(turns[:turn_idx], add_generation_prompt=True, tools=tools)
            if build(turns, tools=tools)[: len(prompt)] == prompt:
                start = min(start, len(prompt))
        return start, end

    find_answer.from_the_prompt = True  # type: ignore[attr-defined]
    ChatTemplateStrategy.find_turn = find_answer


def render(cfg: Any, tokenizer: Any) -> Callable[..., str]:
    """What writes a conversation as the text that the model reads."""
    from axolotl.utils.chat_templates import (  # type: ignore[import-not-found]
        get_chat_template_from_config,
    )

    template = get_chat_template_from_config(cfg, None, tokenizer)
    return partial(tokenizer.apply_chat_template, chat_template=template, tokenize=False)


def preferences(cfg: Any, **_: Any) -> Any:
    """Axolotl's dataset type `docent_axolotl.preferences`: pairs of answers to one conversation.

    Its own `chat_template.default` looks for an answer's text from the start of a rendered turn,
    and finds a short one, such as `user`, in the marks before it.
    """

    def pair(sample: dict[str, Any], tokenizer: Any = None) -> dict[str, str]:
        text = render(cfg, tokenizer)
        turns = [{"role": t["role"], "content": t["content"]} for t in sample["messages"]]
        prompt = text(turns, add_generation_prompt=True)
        answers = {}
        for name in ("chosen", "rejected"):
            whole = text([*turns, {"role": "assistant", "content": sample[name]}])
            if not whole.startswith(prompt):
                fail(
                    "model.chat_template: the text of a conversation does not begin with its "
                    f"prompt (example {sample['id']}): set model.template_head so that it does"
                )
            answers[name] = whole[len(prompt) :].rstrip()
        return {"prompt": prompt, **answers}

    return pair, {"remove_columns": ["messages", "id"]}


class Repeatable(TrainerCallback):  # type: ignore[misc]
    """Lets chance follow from seed, epoch and step alone, so that a training that goes on from a
    checkpoint draws what it would have drawn.

    The trainer restores the generators as they were at the checkpoint; an evaluation after that of
    an epoch's last step has moved them on before the next epoch is shuffled.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        sampler = kept["train_dataloader"]
        for name in ("batch_sampler", "batch_sampler", "sampler", "sampler"):  # as far as it nests
            sampler = getattr(sampler, name, None) or sampler
        if hasattr(sampler, "generator"):
            epoch = int((state.epoch or 0) + 1e-6)
            sampler.generator = torch.Generator().manual_seed(args.seed + epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        rank = int(os.environ.get("RANK", "0"))
        set_seed((args.seed * 1_000_003 + state.global_step * 4099 + rank) % 2**32)


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Each log of the trainer as a row of the report; a loss that is no number ends it.

    It also sees that a checkpoint has room, and seals it once it is whole and on the disk.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # however seldom it logs, the end has a loss
        if control.should_save:
            # The next log is a mean from here on whether or not the training is interrupted.
            control.should_log = True
            check_room(Path(args.output_dir), kept["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        check_finite(kept["model"], f"the weights at step {state.global_step}")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process has written its own files
        if os.environ.get("RANK", "0") == "0":
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        for name in ("loss", "eval_loss"):
            if not math.isfinite(float(logs.get(name, 0))):
                fail(
                    f"the loss is {logs[name]} at step {state.global_step} of {state.max_steps}: "
                    "lower the learning rate"
                )
        figures = {name: float(logs[name]) for name in TOLD if name in logs}
        if figures:
            report(
                step=state.global_step,
                total=state.max_steps,
                tokens=int(state.num_input_tokens_seen),
                memory_gb=peak_memory(),
                **self.speed(int(state.num_input_tokens_seen)),
                **figures,
            )

    def speed(self, tokens: int) -> dict[str, float]:
        """Tokens a second since the log before."""
        before, self.last = getattr(self, "last", None), (time.monotonic(), tokens)
        if before is None or tokens <= before[1]:
            return {}
        return {"tokens_per_s": (tokens - before[1]) / max(self.last[0] - before[0], 1e-6)}


def peak_memory() -> float:
    """Gigabytes of this process, on its GPU or where there is none in the host's memory."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def check_room(folder: Path, model: Any) -> None:
    """End the training before a checkpoint that the disk cannot hold; one line says how much."""
    if os.environ.get("RANK", "0") != "0":
        return
    last = max(folder.glob(f"checkpoint-*/{SEAL}"), key=os.path.getmtime, default=None)
    if last:
        needed = sum(json.loads(last.read_text()).values())
    else:  # the weights, and two more numbers for each that is trained
        sizes = [(getattr(p, "ds_numel", p.numel()), p) for p in model.parameters()]
        trained = sum(8 * count for count, p in sizes if p.requires_grad)
        is_adapter = any(not p.requires_grad for _, p in sizes)
        kept = sum(n * p.element_size() for n, p in sizes if p.requires_grad or not is_adapter)
        needed = kept + trained
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        fail(
            f"No space left on device: a checkpoint takes {needed / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free in {folder}"
        )


def seal(checkpoint: Path) -> None:
    """See a checkpoint onto the disk, then say in it how large each of its files is."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    beside = checkpoint / f".{SEAL}"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(sizes, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(checkpoint / SEAL)


def refuse_unknown_keys(cfg: Any) -> None:
    """Axolotl drops a key that it does not know without a word; a typo would be trained past."""
    from axolotl.utils.schemas.config import AxolotlInputConfig  # type: ignore[import-not-found]

    known = {"axolotl_config_path", *AxolotlInputConfig.model_fields}
    for path in PluginManager.get_instance().get_input_args():
        module, _, name = path.rpartition(".")
        known.update(getattr(importlib.import_module(module), name).model_fields)
    for key in sorted(set(cfg) - known):
        close = difflib.get_close_matches(key, known, n=1)
        fail(
            f"finetune.axolotl.{key}: Axolotl knows no such key"
            + (f" (did you mean {close[0]}?)" if close else "")
        )


def save_in_process() -> None:
    """Let a pool of one process be none: it imports all anew, in five seconds, and gains nothing.

    Axolotl saves the prepared examples so, and 1 is the least it can be told.
    """
    import datasets  # type: ignore[import-not-found]

    save = datasets.Dataset.save_to_disk
    if getattr(save, "in_process", False):
        return  # merge-lora reads its YAML twice

    # Several processes ask for their optimizer's state on `cpu:0`, which torch does not know. Its
    # number in torch's order must be nobody else's.
    torch.serialization.register_package(
        95, lambda _: None, lambda held, place: held if place.startswith("cpu:") else None
    )

    def save_to_disk(self: Any, *args: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        save(self, *args, num_proc=None if num_proc == 1 else num_proc, **kwargs)

    save_to_disk.in_process = True  # type: ignore[attr-defined]
    datasets.Dataset.save_to_disk = save_to_disk


def train_on_cpu(cfg: Any) -> None:
    """Let Accelerate, DeepSpeed and Axolotl use gloo; they assume an accelerator under torchrun."""
    import torch._dynamo  # type: ignore[import-not-found]
    from accelerate.state import DistributedType, PartialState  # type: ignore[import-not-found]
    from axolotl.loaders.model import ModelLoader  # type: ignore[import-not-found]

    torch._dynamo.config.disable = True  # Muon compiles itself, which here wants a C++ compiler
    for key in LORA_KERNELS:  # Triton: on by default, and they need CUDA
        if cfg.get(key) is None:
            cfg[key] = False

    prepare_backend = PartialState._prepare_backend
    if getattr(prepare_backend, "gloo", False):
        return  # merge-lora reads its YAML twice

    def prepare_gloo(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        backend, kind = prepare_backend(self, *args, **kwargs)
        if kind == DistributedType.NO and "LOCAL_RANK" in os.environ:
            return "gloo", DistributedType.MULTI_CPU
        return backend, kind

    prepare_gloo.gloo = True  # type: ignore[attr-defined]
    PartialState._prepare_backend = prepare_gloo

    set_device_map = ModelLoader._set_device_map_config

    def leave_device_map(loader: Any) -> None:
        # {"": LOCAL_RANK} would mean accelerator number LOCAL_RANK.
        set_device_map(loader)
        if loader.cfg.world_size != 1:
            loader.model_kwargs.pop("device_map", None)

    ModelLoader._set_device_map_config = leave_device_map

    from axolotl.core.builders import base as builders  # type: ignore[import-not-found]

    # For Muon it makes a mesh of GPUs where several processes train. Without one, each process
    # steps by the gradients that all share.
    builders.build_parallelism_config = lambda cfg: (None, None)

    if cfg.get("deepspeed"):
        import deepspeed.comm  # type: ignore[import-not-found]

        # A kernel for inference alone, which takes g++ a minute; one that is killed meanwhile
        # leaves a lock that every later start waits for without end.
        # By its name: the attribute `torch` of the package is torch itself.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]

        init = deepspeed.comm.init_distributed

        def init_gloo(dist_backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
            # Axolotl asks for nccl by name when there is one process.
            return init("gloo" if dist_backend == "nccl" else dist_backend, *args, **kwargs)

        deepspeed.comm.init_distributed = init_gloo
