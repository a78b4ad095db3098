"""Subtitles, or a recording's transcript, to paragraphs with a mark for the second of each."""

import re
from dataclasses import dataclass

import pysubs2

from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft, one_line
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError

MARK_S = 15
"""Seconds after which the next line gets an anchor of its own."""
PAUSE_S = 3.0
"""Silence that ends a paragraph, in seconds."""
PARAGRAPH_S = 60
"""Seconds after which a sentence's end ends the paragraph, too."""

_TAG = re.compile(r"</?[^<>\n]*>|\{\\[^{}\n]*\}")
_SENTENCE_END = re.compile(r"[.!?…][\"”')\]]*$")


@dataclass(frozen=True)
class Cue:
    start_s: float
    end_s: float
    text: str


def parse(body: bytes, at: Place) -> Page:
    """SRT or WebVTT, told by its first line."""
    cues = read(decode(body))
    if not cues:
        raise UnreadableError("empty", "no line is spoken")
    draft = Draft()
    began = marked = cues[0].start_s - MARK_S
    end: Cue | None = None
    for cue in cues:
        paused = end is None or cue.start_s - end.end_s >= PAUSE_S
        whole = end is None or _SENTENCE_END.search(end.text)
        breaks = paused or (whole and cue.start_s - began >= PARAGRAPH_S)
        if breaks or cue.start_s - marked >= MARK_S:
            draft.mark(f"t={int(cue.start_s)}")
            marked = cue.start_s
        if breaks:
            began = cue.start_s
        draft.block(cue.text, "\n\n" if breaks else " ")
        end = cue
    return draft.page(at.url, at.stem)


def read(text: str) -> list[Cue]:
    """The spoken lines in order of time, each once: captions that roll repeat the line before."""
    form = "vtt" if text.lstrip("\ufeff").startswith("WEBVTT") else "srt"
    try:
        found = pysubs2.SSAFile.from_string(text, format_=form)
    except (pysubs2.Pysubs2Error, ValueError, LookupError) as error:
        raise UnreadableError("broken", one_line(str(error))) from None
    cues: list[Cue] = []
    before: list[str] = []
    for event in sorted(found.events, key=lambda event: (event.start, event.end)):
        if event.is_comment:
            continue
        lines = [one_line(_TAG.sub("", line)) for line in event.text.split("\\N")]
        lines = [line for line in lines if line]
        said = [line for line in lines if line not in before]
        if said:
            cues.append(Cue(event.start / 1000, event.end / 1000, " ".join(said)))
        before = lines or before
    return cues
