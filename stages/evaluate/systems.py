"""Which systems answer, under which names, and where their models are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stages import llm
from stages.answer import endpoint as serving
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import System, identify
from stages.evaluate import asking, neural, verdict
from stages.evaluate.asking import Respondent, Source


class External(llm.OpenAI):
    """A model of someone else that answers the same questions, under its own name."""

    retrieval: bool
    """Whether it is also asked with retrieved chunks, as a second system NAME_rag."""


@dataclass
class Systems:
    """Who is asked, in the order of the results, and where they answer."""

    respondents: list[Respondent] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)

    def add_ours(
        self, systems: Sequence[System], endpoint: Path | None, server: Source, has_shots: bool
    ) -> None:
        """Docent's own, whose models `endpoint` describes and `server` serves."""
        said = store.read_json(endpoint) if endpoint else None
        for system in systems:
            if system == "quote":
                self.respondents.append(Respondent("quote", "quote", None, ""))
            elif said is None:
                raise PipelineError(
                    f"evaluate.systems: {system!r} is a model of ours, and no --endpoint says "
                    "where it is: give one (data/deploy/endpoint.json), or leave it out"
                )
            elif system == "base_few_shot" and not has_shots:
                progress.note("base_few_shot is left out: no validation example is there to show")
            else:
                model = serving.identity(said, "base" if system.startswith("base") else "tuned")
                self.respondents.append(Respondent(system, system, "ours", model))
                self.sources["ours"] = server

    def add_champion(
        self, systems: Sequence[System], endpoint: Path, folder: Path, server: Source
    ) -> None:
        """The tuned model in `folder`, served like ours under the names of `verdict.CHAMPION`."""
        about = store.read_json(folder / "champion.json")
        said = serving.with_tuned(store.read_json(endpoint), folder / "model", about["digest"])
        if said is None:
            progress.note("the champion is not asked: that takes deploy=embedded")
            return
        manifest = store.workspace("champion", "endpoint.json")
        store.write_json(manifest, said)
        self.sources["champion"] = Source(
            partial(serving.start, manifest), server.concurrency, server.usd_per_hour
        )
        model = serving.identity(said, "tuned")
        for system in systems:
            if name := verdict.CHAMPION.get(system):
                self.respondents.append(Respondent(name, system, "champion", model))

    def add_external(self, name: str, cfg: External) -> None:
        """A hosted model, without and perhaps with retrieved chunks."""
        settings = identify(cfg.model_dump(exclude={"api_key_env", "concurrency", "retrieval"}))
        self.sources[name] = asking.hosted(name, cfg)
        self.respondents.append(Respondent(name, "base", name, settings))
        if cfg.retrieval:
            self.respondents.append(Respondent(f"{name}_rag", "base_rag", name, settings))

    @property
    def ways(self) -> dict[str, System | None]:
        """How the answers of each come about, by name."""
        return {who.name: who.way for who in self.respondents}


def served_models(endpoint: Path) -> dict[str, neural.Model]:
    """The models that the endpoint serves, where their files are."""
    said: Mapping[str, Any] = store.read_json(endpoint)
    if said["engine"] == "hosted":
        return {}
    places = serving.located(endpoint, said)
    return {
        name: neural.Model(path=places[name], digest=about["digest"])
        for name, about in said["models"].items()
    }
