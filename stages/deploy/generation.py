"""Generated token ids in, text out as its characters become whole, until something ends it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily, unless `sample` is set."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Token:
    """A generated token. `text` is empty until the bytes so far make whole characters."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True)
class End:
    text: str
    """All of the text, with the stop sequence if one ended it."""
    stop_at: int | None
    """Where in the text that stop sequence starts."""
    finish_reason: FinishReason
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Failure:
    reason: str


Event = tuple[Token, End | None] | Failure


class Vocabulary(Protocol):
    """What a tokenizer must tell of its tokens."""

    eos: frozenset[int]
    """The tokens that end an answer."""
    special: frozenset[int]
    """The tokens that are not text."""

    def decode(self, ids: list[int], /) -> str: ...


@dataclass(eq=False)
class Generation:
    """A request and how far it is. `emit` is called in the engine's thread.

    A streamed one emits every token, the last with its end; another the last token only.
    """

    prompt: list[int]
    max_new_tokens: int
    emit: Callable[[Event], None]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stream: bool = False
    cancelled: bool = False
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    _plain: list[int] = field(default_factory=list)
    _window: int = 0  # where decoding starts: one piece before the newest
    _piece: int = 0  # where the newest piece starts
    _shown: int = 0  # characters of the window that are in the text

    def add(self, id: int, logprob: float, vocabulary: Vocabulary) -> bool:
        """Take the next token; whether it was the last."""
        special = id in vocabulary.eos or id in vocabulary.special
        if not special:
            self._plain.append(id)
        reason: FinishReason | None = None
        if id in vocabulary.eos:
            reason = "eos_token"
        elif len(self.tokens) + 1 == self.max_new_tokens:
            reason = "length"
        seen = len(self.text)
        text = "" if special else self._more_text(vocabulary)
        self.text += text
        stop_at = None
        for stop in self.stop:
            found = self.text.find(stop, max(0, seen - len(stop) + 1))
            if found >= 0 and (stop_at is None or found < stop_at):
                reason, stop_at = "stop_sequence", found
        token = Token(id, vocabulary.decode([id]) if special else text, logprob, special)
        self.tokens.append(token)
        if reason:
            self.emit((token, End(self.text, stop_at, reason, tuple(self.tokens))))
        elif self.stream:
            self.emit((token, None))
        return reason is not None

    def _more_text(self, vocabulary: Vocabulary) -> str:
        """The text that the newest token completes: a character that lacks bytes is withheld.

        Decoded together with the piece before it, as TGI does, since a decoder may treat the
        first token differently (SentencePiece drops its leading space).
        """
        text = vocabulary.decode(self._plain[self._window :])
        whole = text.rstrip("\ufffd")
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(text):
            self._window, self._piece = self._piece, len(self._plain)
            self._shown = len(vocabulary.decode(self._plain[self._window :]))
        return new
