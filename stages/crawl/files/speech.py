"""Recordings to WebVTT by a Whisper model in a local folder, once for each recording."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.crawl.page import UnreadableError


class Whisper(config.Base):
    """A Whisper model in CTranslate2's format."""

    path: Annotated[str, Field(min_length=1)]
    """Its folder, with `model.bin`, `config.json`, `tokenizer.json` and the vocabulary."""
    language: str | None
    """What is spoken, as `en`; null hears it from the first half minute."""
    device: Literal["auto", "cpu", "cuda"]
    """Where it runs; auto takes a GPU that there is."""
    compute_type: str
    """Its numbers, as CTranslate2 names them: `default` takes those of the folder, `int8` less
    memory."""
    beam_size: Annotated[int, Field(gt=0)]
    """How many readings are followed at once."""


class Listener:
    """Writes recordings down; the model is loaded with the first one that is not known."""

    def __init__(self, cfg: Whisper) -> None:
        self._cfg = cfg
        self._folder = store.locate(cfg.path, "source.whisper.path")
        for name in ("model.bin", "config.json", "tokenizer.json"):
            if not (self._folder / name).is_file():
                raise PipelineError(
                    f"source.whisper.path: {cfg.path!r}: no {name}: expected a Whisper model as "
                    "ct2-transformers-converter --copy_files tokenizer.json writes it"
                )

    @cached_property
    def digest(self) -> str:
        """Of the model and of how it is asked."""
        return identify(store.digest(self._folder), self._cfg.model_dump(exclude={"path"}))

    def write_down(self, recording: Path) -> bytes:
        """The subtitles, from .cache/transcripts where they were written before."""
        with recording.open("rb") as file:
            name = identify(hashlib.file_digest(file, "sha256").hexdigest(), self.digest)
        path = store.cache("transcripts", f"{name}.vtt")
        if not path.exists():
            store.write_text(path, "".join(self._cues(recording)))
        return path.read_bytes()

    def _cues(self, recording: Path) -> Iterator[str]:
        from av.error import FFmpegError

        try:
            segments, heard = self._model.transcribe(
                str(recording),
                language=self._cfg.language,
                beam_size=self._cfg.beam_size,
                temperature=0.0,  # else a doubtful passage is drawn by lot, differently each time
                condition_on_previous_text=False,
                vad_filter=True,
            )
        except (FFmpegError, ValueError, IndexError) as error:
            # IndexError: a film without a sound track.
            raise UnreadableError("broken", f"no sound can be read: {error}") from None
        yield "WEBVTT\n"
        for segment in segments:
            said = " ".join(segment.text.split()).replace("-->", "->")
            if said and segment.start < heard.duration:
                end = min(segment.end, heard.duration)
                yield f"\n{_clock(segment.start)} --> {_clock(end)}\n{said}\n"

    @cached_property
    def _model(self) -> Any:
        # Here, since it loads onnxruntime and PyAV.
        from faster_whisper import WhisperModel  # type: ignore[import-untyped]

        try:
            return WhisperModel(
                str(self._folder),
                device=self._cfg.device,
                compute_type=self._cfg.compute_type,
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            raise PipelineError(
                f"source.whisper: {self._cfg.path!r}: {' '.join(str(error).split())}: check the "
                "folder, source.whisper.device and source.whisper.compute_type"
            ) from None


def _clock(seconds: float) -> str:
    millis = round(seconds * 1000)
    minutes, millis = divmod(millis, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{millis // 1000:02}.{millis % 1000:03}"
