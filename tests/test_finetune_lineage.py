"""What a model was trained on, an adapter to go on from, and the model's card."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from test_finetune import (
    Workspace,
    local_model,
    model_config,
    one_line,
    section,
    tuning_config,
    workspace,
)

from stages.core import store
from stages.core.records import Document
from stages.finetune import card, hardware, lineage

__all__ = ["workspace"]

OUT = Path("data/finetune")


def trained(workspace: Workspace, **values: Any) -> str:
    """Train an adapter; its digest."""
    cfg = tuning_config("lora", python=workspace.trainer(), device="cpu", **values)
    workspace.run(cfg, local_model(Path("m")))
    return str(store.read_json(OUT / "lineage.json")["adapter"])


def again(workspace: Workspace, named: str, **values: Any) -> Any:
    return tuning_config(
        "lora", python=workspace.trainer(), device="cpu", init_adapter=named, **values
    )


def remove(page: str) -> None:
    documents = list(store.read(Path("data/documents.jsonl"), Document))
    store.write(Path("data/documents.jsonl"), [d for d in documents if d.id != page])


def test_the_lineage_names_the_documents_of_the_training(workspace: Workspace) -> None:
    trained(workspace)
    found = store.read_json(OUT / "lineage.json")
    assert [page["url"] for page in found["documents"]] == ["u0", "u1"]  # u2 is a test page
    assert len(found["documents"][0]["text_sha256"]) == 64
    assert found["base"].startswith("local:") and found["init_adapter"] is None


def test_an_adapter_is_kept_and_gone_on_from_by_its_digest(workspace: Workspace) -> None:
    digest = trained(workspace)
    for named in (digest, digest[:16], f".cache/adapters/{digest[:16]}"):
        workspace.run(again(workspace, named), local_model(Path("m")))
        assert store.read_json(OUT / "lineage.json")["init_adapter"] == digest
    shown = json.loads((OUT / "adapter/adapter_config.json").read_text())
    assert str(workspace.folder) not in json.dumps(shown)
    assert shown["target_modules"] == ["q", "v"]


def test_the_trainer_is_given_the_adapter_to_go_on_from(workspace: Workspace) -> None:
    digest = trained(workspace)
    seen = workspace.folder / "seen"
    cfg = again(workspace, digest)
    workspace.trainer(f"open({str(seen)!r}, 'w').write(places['lora_model_dir'])")
    workspace.run(cfg, local_model(Path("m")))
    assert Path(seen.read_text()) == (Path(".cache/adapters") / digest[:16]).absolute()


def test_an_adapter_that_learned_a_removed_page_is_refused(workspace: Workspace) -> None:
    digest = trained(workspace)
    remove("d1")
    said = one_line(workspace, again(workspace, digest), local_model(Path("m")))
    assert said.startswith(f"finetune.init_adapter: {digest!r}") and "u1" in said


def test_a_page_removed_after_a_second_training_taints_that_too(workspace: Workspace) -> None:
    digest = trained(workspace)
    workspace.assign(d0="train", d1="test", d2="test")  # the second never reads d1 itself
    workspace.run(again(workspace, digest), local_model(Path("m")))
    second = store.read_json(OUT / "lineage.json")["adapter"]
    remove("d1")
    assert "u1" in one_line(workspace, again(workspace, second), local_model(Path("m")))


def test_a_test_page_that_is_removed_taints_nothing(workspace: Workspace) -> None:
    digest = trained(workspace)
    remove("d2")
    workspace.run(again(workspace, digest), local_model(Path("m")))


def test_an_adapter_over_another_base_is_refused(workspace: Workspace) -> None:
    digest, model = trained(workspace), local_model(Path("m"))
    store.write_text(Path("m/tokenizer.json"), "another")
    said = one_line(workspace, again(workspace, digest), model)
    assert "it was trained over the base local:" in said


def test_a_rank_that_is_not_the_adapters_is_told(workspace: Workspace) -> None:
    digest = trained(workspace)
    said = one_line(workspace, again(workspace, digest, lora_r=8), local_model(Path("m")))
    assert said.startswith("finetune.lora_r: 8") and "rank 16" in said


def test_an_adapter_that_cannot_be_found_or_read_is_one_line(workspace: Workspace) -> None:
    digest = trained(workspace)
    model = local_model(Path("m"))
    assert digest[:16] in one_line(workspace, again(workspace, "f" * 16), model)
    assert "digest" in one_line(workspace, again(workspace, "data/finetune/adapter"), model)
    assert "no such file" in one_line(workspace, again(workspace, "models/none"), model)
    foreign = Path("foreign")
    shutil.copytree(Path(".cache/adapters") / digest[:16], foreign)
    (foreign / "lineage.json").unlink()
    assert "lineage.json" in one_line(workspace, again(workspace, "foreign"), model)
    (foreign / "adapter_model.safetensors").unlink()
    assert "no adapter_model" in one_line(workspace, again(workspace, "foreign"), model)


def test_a_kept_adapter_that_is_not_what_its_digest_says_is_refused(workspace: Workspace) -> None:
    digest = trained(workspace)
    kept = Path(".cache/adapters") / digest[:16]
    model = local_model(Path("m"))
    settings = kept / "adapter_config.json"
    whole = settings.read_text()
    settings.write_text(whole.replace("0.0", "0.5") if "0.0" in whole else whole + " ")
    for named in (digest, digest[:16]):
        said = one_line(workspace, again(workspace, named), model)
        assert said.startswith(f"finetune.init_adapter: {named!r}") and "remove it" in said
    trained(workspace)  # which puts it right
    assert lineage.digest(kept) == digest
    workspace.run(again(workspace, digest), model)
    assert "no adapter of this digest" in one_line(
        workspace, again(workspace, digest[:16] + "0" * 48), model
    )


def test_a_head_of_two_digests_is_refused(workspace: Workspace) -> None:
    digest = trained(workspace)
    kept = Path(".cache/adapters")
    other = digest[:8] + ("0" if digest[8] != "0" else "1") + digest[9:16]
    shutil.copytree(kept / digest[:16], kept / other)
    said = one_line(workspace, again(workspace, digest[:8]), local_model(Path("m")))
    assert digest[:16] in said and other in said and "\n" not in said
    workspace.run(again(workspace, digest[:12]), local_model(Path("m")))


def test_a_torn_adapter_is_not_gone_on_from(workspace: Workspace) -> None:
    digest = trained(workspace)
    shutil.copytree(Path(".cache/adapters") / digest[:16], "torn")
    weights = Path("torn/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-2])
    said = one_line(workspace, again(workspace, "torn"), local_model(Path("m")))
    assert "adapter_model.safetensors is torn" in said


def test_what_is_half_copied_is_no_kept_adapter(workspace: Workspace) -> None:
    digest = trained(workspace)
    kept = Path(".cache/adapters")
    shutil.copytree(kept / digest[:16], kept / f".{digest[:16]}.1")  # of a process that was killed
    shutil.rmtree(kept / digest[:16])
    said = one_line(workspace, again(workspace, digest), local_model(Path("m")))
    assert said.endswith("expected one of none")
    trained(workspace)
    assert lineage.digest(kept / digest[:16]) == digest


# --- a base on the hub ---------------------------------------------------------------------------

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def branch(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Moves the branches of a hub to a commit."""
    commits = [OLD]

    def download(id: str, name: str, revision: str) -> str:
        path = workspace.folder / "hub/snapshots" / commits[-1] / name
        store.write_text(path, "{}")
        return str(path)

    def move(commit: str) -> None:
        commits.append(commit)
        hardware.hub_config.cache_clear()

    monkeypatch.setattr(hardware.huggingface_hub, "hf_hub_download", download)
    hardware.hub_config.cache_clear()
    yield move
    hardware.hub_config.cache_clear()


def test_a_branch_of_the_hub_is_taken_for_the_commit_that_it_names(
    workspace: Workspace, branch: Callable[[str], None]
) -> None:
    model = model_config("hub", id="org/name", revision="main", chat_template="{{ messages }}")
    cfg = tuning_config("lora", python=workspace.trainer(), device="cpu")
    workspace.run(cfg, model)
    first = store.read_json(OUT / "lineage.json")
    assert first["base"] == f"org/name@{OLD}"
    assert f"revision_of_model: {OLD}" in (OUT / "axolotl.yaml").read_text()
    assert f"at revision `{OLD}`" in (OUT / "README.md").read_text()
    branch(NEW)
    said = one_line(workspace, again(workspace, first["adapter"]), model)
    assert f"over the base org/name@{OLD}, and this is org/name@{NEW}" in said
    assert f"set model.revision to {OLD}" in said
    pinned = model.model_copy(update={"revision": OLD})
    workspace.run(again(workspace, first["adapter"]), pinned)


def test_a_branch_that_nobody_knows_here_keeps_its_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no hub here")

    monkeypatch.setattr(hardware.huggingface_hub, "hf_hub_download", absent)
    hardware.hub_config.cache_clear()
    model = model_config("hub", id="org/name", revision="main", chat_template="{{ messages }}")
    workspace.run(tuning_config("lora", python=workspace.trainer(), device="cpu"), model)
    assert store.read_json(OUT / "lineage.json")["base"] == "org/name@main"


def test_a_torn_adapter_is_not_exported(workspace: Workspace) -> None:
    cut = "path = out / 'adapter_model.safetensors'; path.write_bytes(path.read_bytes()[:-2])"
    cfg = tuning_config("lora", python=workspace.trainer(after=cut), device="cpu")
    assert "is torn" in one_line(workspace, cfg, local_model(Path("m")))
    assert not (OUT / "adapter").exists() and not (OUT / "model").exists()


# --- the card ----------------------------------------------------------------------------------


def test_the_card_is_equal_for_equal_runs_and_names_what_shaped_the_model(
    workspace: Workspace,
) -> None:
    digest = trained(workspace)
    said = (OUT / "README.md").read_text()
    trained(workspace)
    assert (OUT / "README.md").read_text() == said
    assert str(workspace.folder) not in said
    for named in (digest, "`lora`", "../evaluate/verdict.json", "train_loss", "- u0"):
        assert named in said, named
    assert store.digest(Path("data/train.jsonl")) in said


def test_the_card_tells_losses_from_counts_and_shows_whole_numbers_whole(
    workspace: Workspace,
) -> None:
    told = "say(num_parameters=134515008, num_examples=len(rows), num_processes=8)"
    cfg = tuning_config(
        "dpo", python=workspace.trainer(told), micro_batch_size=2, gradient_accumulation_steps=3
    )
    workspace.run(cfg, local_model(Path("m")))
    said = (OUT / "README.md").read_text()
    assert "| examples a step | 48 |" in said  # of the 8 processes that there were
    losses, _, rest = said.partition("## Losses")[2].partition("## Preferences")
    preferences, _, counts = rest.partition("## Counts")
    assert "| train_loss | 1 |" in losses and "nats per token" in losses
    assert "num_" not in losses and "dpo" not in losses
    assert "| dpo_accuracy | 1 |" in preferences and "num_" not in preferences
    assert "| num_parameters | 134515008 |" in counts and "| num_examples | 8 |" in counts


def test_the_card_counts_the_examples_of_all_nodes() -> None:
    history = lineage.Lineage(base="b", documents=(), init_adapter=None)
    launcher = section("finetune/launcher/local", num_nodes=3, rendezvous="10.0.0.1:29500")
    cfg = tuning_config(num_processes=2, micro_batch_size=4, launcher=launcher)
    said = card.render(cfg, model_config("llama32"), history, {}, {}, None)
    assert "| examples a step | 24 |" in said


def test_the_card_names_the_base_and_its_licence(workspace: Workspace) -> None:
    history = lineage.Lineage(base="b", documents=(), init_adapter=None)
    said = card.render(tuning_config(), model_config("llama32"), history, {}, {}, None)
    assert "base_model: meta-llama/Llama-3.2-1B-Instruct" in said
    assert "license: llama3.2" in said
    scratch = card.render(tuning_config(), model_config(), history, {}, {}, None)
    assert "license:" not in scratch
