"""The hosted fine-tuning API: examples up, one job, its events, and the name of a tuned model.

What was done is noted on the disk before the next step, and a job carries the name of what it
trains on: a run that is killed anywhere goes on with the job, and never starts a second one.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import openai
from openai.types.fine_tuning import FineTuningJob

from stages.core import store
from stages.core.errors import PipelineError
from stages.llm import connection, retries
from stages.llm.retries import Retries
from stages.llm.settings import Keyed, public
from stages.llm.wire import NotAReplyError

T = TypeVar("T")

MARK = "docent"
"""Key of a job's metadata under which the name of its training stands."""
GOES_ON = frozenset({"validating_files", "queued", "running", "paused"})
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Settings(connection.Address, Keyed, Protocol):
    """Of an endpoint that trains."""

    @property
    def deadline_s(self) -> float: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def backoff_s(self) -> float: ...
    @property
    def retry_after_cap_s(self) -> float: ...
    @property
    def poll_s(self) -> float: ...


@dataclass(frozen=True)
class Order:
    """A training to be bought."""

    name: str
    """Of all that shapes it; the job carries it."""
    model: str
    training: Path
    validation: Path | None
    hyperparameters: Mapping[str, Any]
    seed: int
    suffix: str | None
    """Goes into the name of the tuned model."""


@dataclass(frozen=True)
class Event:
    """What an endpoint tells of a job."""

    message: str
    figures: Mapping[str, float]
    """Such as step, total_steps and train_loss."""


@dataclass(frozen=True)
class Tuned:
    job: str
    model: str
    trained_tokens: int
    is_new: bool
    """Whether this run is the first to see it done: what it cost counts now, and not again."""


class Tuning:
    """Trains at an endpoint; one process at a time uses the file of notes."""

    def __init__(
        self,
        cfg: Settings,
        secret: str,
        notes: Path,
        section: str,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = connection.client(cfg, secret)
        self._tries = Retries(
            cfg.max_attempts, cfg.backoff_s, cfg.retry_after_cap_s, cfg.deadline_s
        )
        self._cfg, self._notes, self._section, self._sleep = cfg, notes, section, sleep

    def close(self) -> None:
        self._client.close()

    def train(self, order: Order, tell: Callable[[Event], None]) -> Tuned:
        """Until the model is there; PipelineError where the endpoint fails, refuses or cancels."""
        self._note(name=order.name, base_url=public(self._cfg.base_url))
        noted = self._noted()
        job = noted.get("job") or self._found(order.name, noted) or self._begin(order)
        self._note(job=job)
        seen: set[str] = set(noted.get("seen", ()))
        while True:
            found = self._look(job)
            for event in self._events(job, seen):
                tell(event)
            if found.status in ENDED:
                break
            self._sleep(self._cfg.poll_s)
        if found.status == "succeeded" and found.fine_tuned_model:
            is_new = not noted.get("succeeded")
            self._note(succeeded=True)
            tokens = int(found.trained_tokens or 0)
            return Tuned(job, found.fine_tuned_model, tokens, is_new)
        self._notes.unlink(missing_ok=True)  # so that the next run begins a new one
        fault = found.error.message if found.error and found.error.message else "it gave no reason"
        said = " ".join(fault.split())[:300]
        raise PipelineError(
            f"{self._section}: job {job} {found.status}: {said}: mend what it names, and run "
            "again, which begins (and pays) a new job"
        )

    def cancel(self) -> str | None:
        """Cancel the job that the notes are of; its number, or None where none goes on here."""
        noted = self._noted()
        here = public(self._cfg.base_url)
        if noted.get("succeeded") or noted.get("base_url", here) != here:
            return None
        job = noted.get("job") or (self._found(noted["name"], noted) if "name" in noted else None)
        if not job or self._look(job).status not in GOES_ON:
            return None
        self._try(lambda: self._client.fine_tuning.jobs.cancel(job))
        return str(job)

    # --- one job -------------------------------------------------------------------------------

    def _found(self, name: str, noted: Mapping[str, Any]) -> str | None:
        """A job of this training that was begun though its number was never noted.

        An endpoint that keeps no metadata is asked by the file that the job trains on.
        """

        def ask() -> list[FineTuningJob]:
            return list(self._client.fine_tuning.jobs.list(limit=100))

        file = noted.get("training_file")
        for job in self._try(ask):
            mine = (job.metadata or {}).get(MARK) == name or (
                file is not None and job.training_file == file
            )
            if mine and job.status not in ("failed", "cancelled"):
                return job.id
        return None

    def _begin(self, order: Order) -> str:
        files = {"training_file": order.training, "validation_file": order.validation}
        for name, path in files.items():
            if path is not None and name not in self._noted():
                self._note(**{name: self._upload(order, name, path)})
        noted = self._noted()
        tried = False

        def create() -> str:
            nonlocal tried
            # The answer to an earlier attempt may have got lost, and not the job.
            if tried and (found := self._found(order.name, noted)):
                return found
            tried = True
            made = self._client.fine_tuning.jobs.create(
                model=order.model,
                training_file=noted["training_file"],
                validation_file=noted.get("validation_file"),
                method=cast(
                    Any,
                    {
                        "type": "supervised",
                        "supervised": {"hyperparameters": dict(order.hyperparameters)},
                    },
                ),
                seed=order.seed,
                suffix=order.suffix,
                metadata={MARK: order.name},
            )
            return _checked(made).id

        return self._try(create)

    def _upload(self, order: Order, name: str, path: Path) -> str:
        def upload() -> str:
            with path.open("rb") as file:
                named = (f"{order.name[:16]}-{name}.jsonl", file)
                made = self._client.files.create(
                    file=named, purpose="fine-tune", timeout=self._tries.deadline_s
                )
            if not isinstance(getattr(made, "id", None), str):
                raise NotAReplyError("no file")
            return made.id

        return self._try(upload)

    def _look(self, job: str) -> FineTuningJob:
        return self._try(lambda: _checked(self._client.fine_tuning.jobs.retrieve(job)))

    def _events(self, job: str, seen: set[str]) -> Iterator[Event]:
        """Those that were not told before, the oldest first."""

        def ask() -> list[Any]:
            fresh = []
            for event in self._client.fine_tuning.jobs.list_events(job, limit=100):
                if event.id in seen:
                    break
                fresh.append(event)
            return fresh

        fresh = self._try(ask)
        for event in reversed(fresh):
            seen.add(event.id)
            data = event.data if isinstance(event.data, dict) else {}
            figures = {
                name: float(value)
                for name, value in data.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            yield Event(" ".join(str(event.message).split())[:300], figures)
        if fresh:
            self._note(seen=sorted(seen))

    # --- notes, and one request ----------------------------------------------------------------

    def _noted(self) -> dict[str, Any]:
        return dict(store.read_json(self._notes)) if self._notes.exists() else {}

    def _note(self, **what: Any) -> None:
        noted = self._noted()
        if any(noted.get(name) != value for name, value in what.items()):
            store.write_json(self._notes, noted | what)

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return retries.until_done(lambda: _understood(work), self._tries, self._sleep)
        except (openai.APIError, NotAReplyError) as error:
            status = getattr(error, "status_code", type(error).__name__)
            said = " ".join(str(getattr(error, "message", error)).split())[:200]
            if status == 404 and (job := self._noted().get("job")):
                raise PipelineError(
                    f"{self._section}: 404: job {job} is not at this address: "
                    f"remove {self._notes} to begin (and pay) a new one"
                ) from None
            raise PipelineError(
                f"{self._section}: {status}: {said}: look at the address, the key, the model and "
                "the examples, and run again: a job that was begun is gone on with"
            ) from None


def _understood(work: Callable[[], T]) -> T:
    """The SDK does not look whether an answer has what it should; then these are raised."""
    try:
        return work()
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise NotAReplyError(f"an answer that is none ({type(error).__name__})") from None


def _checked(job: FineTuningJob) -> FineTuningJob:
    if not isinstance(getattr(job, "id", None), str) or job.status not in GOES_ON | ENDED:
        raise NotAReplyError("no job")
    return job
