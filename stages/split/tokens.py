"""Token counts, offline, by the configured model's tokenizer; of a text, each piece once."""

import functools
import itertools
import re
import string
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from rs_bpe.bpe import openai  # type: ignore[import-not-found]
from tokenizers import Tokenizer

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.model import Config as Model
from stages.core.model import Hub, Local, Scratch

Count = Callable[[str], int]
"""How many tokens a text has."""

KEPT = 1 << 17
"""Counts remembered of short texts: most words come again."""
SHORT = 32
"""Characters; a longer text is hardly ever met twice."""

_PARTED = re.compile(
    r"[^\W_][ \t\r\n!-&(-/:-@\[-`{-~\u2010-\u2027\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]"
    r"|\S[ \t]"
    r"|[\r\n][^\s/]"
)
"""Two neighbours that cl100k and o200k part whatever stands around: tokens on both sides add up.

No alternative of their patterns goes on from a letter or digit to a blank or a mark (an apostrophe
can begin the suffix of a word), from any other character to a blank, or from a line's end to what
stands on the next line (o200k's marks take slashes along)."""
CLOSE, REACH = 4, 64
"""Characters on either side of a seam in which such neighbours are looked for: first, then."""
UNKNOWN = 1 << 40
"""Stands for a gain that could not be told, and makes a sum with it unbelievable."""

_WORDS = str.maketrans(dict.fromkeys(string.ascii_letters + string.digits, "x"))


class Counter:
    """Counts the tokens of texts; where they are `seamed`, also of two that are joined."""

    def __init__(self, count: Count, seamed: bool = False) -> None:
        self.count = count
        self.seamed = seamed
        """Whether _PARTED holds of this tokenizer."""
        self.short = functools.lru_cache(KEPT)(count)
        self.close_gain = functools.lru_cache(KEPT)(self._close_gain)
        self._parted = functools.lru_cache(KEPT)(lambda pair: bool(_PARTED.match(pair)))

    def __call__(self, text: str) -> int:
        return self.short(text) if len(text) <= SHORT else self.count(text)

    def gain(self, text: str, seam: int, begins: bool, ends: bool) -> int:
        """Tokens that the texts before and after the seam have joined, less what they have apart.

        It is mostly below 0. UNKNOWN where the text is too short to tell; nothing stands before it
        if it `begins` what is joined, and nothing after it if it `ends` that.
        """
        left, right = self._around(text, seam)
        if left == right:
            return 0
        if (left == 0 and not begins) or (right == len(text) and not ends):
            return UNKNOWN
        return self(text[left:right]) - self(text[left:seam]) - self(text[seam:right])

    def _close_gain(self, text: str) -> int:
        """The gain in the middle of a text in which every word is spelled x."""
        if "x" in text[slice(*self._around(text, CLOSE))]:
            return UNKNOWN
        return self.gain(text, CLOSE, False, False)

    def _around(self, text: str, seam: int) -> tuple[int, int]:
        """From where to where tokens depend on the seam; the text's ends if that is not in it."""
        parted = self._parted
        if parted(text[seam - 1 : seam + 1]):
            return seam, seam
        left, right = seam - 1, seam + 1
        while left > 0 and not parted(text[left - 1 : left + 1]):
            left -= 1
        while right < len(text) and not parted(text[right - 1 : right + 1]):
            right += 1
        return left, right


@dataclass(frozen=True)
class Pieces:
    """A stretch of text in pieces, and their tokens."""

    bounds: Sequence[int]
    """Where each piece begins, and the end of the last, in characters."""
    counts: Sequence[int]
    sums: Sequence[int]
    """Tokens of all pieces before each bound."""
    gains: Sequence[int] | None
    """Tokens by which the pieces before each bound grow when they are joined (mostly below 0); None
    where counting what is joined is as fast."""


class Ruler:
    """Counts the tokens of one text's spans; offsets are in characters."""

    def __init__(self, text: str, counter: Counter) -> None:
        self.text = text
        self._counter = counter
        self._measured: dict[tuple[int, ...], Pieces] = {}

    def count(self, start: int, end: int) -> int:
        return self._counter(self.text[start:end])

    def measure(self, bounds: Sequence[int]) -> Pieces:
        """The pieces between neighbours of the bounds; once for chunks of all lengths."""
        text, short, count = self.text, self._counter.short, self._counter.count
        if isinstance(bounds, range):
            return _pieces(bounds, [*map(short, text[bounds[0] : bounds[-1]])])
        key = tuple(bounds)
        pieces = self._measured.get(key)
        if pieces is None:
            counts = [
                short(text[start:end]) if end - start <= SHORT else count(text[start:end])
                for start, end in itertools.pairwise(key)
            ]
            mends = self._counter.seamed and key[-1] - key[0] > SHORT * len(counts)
            pieces = _pieces(key, counts, self._gains(key) if mends else None)
            self._measured[key] = pieces
        return pieces

    def count_joined(self, pieces: Pieces, first: int, last: int, start: int, end: int) -> int:
        """Tokens of start:end, which is the pieces first:last without the blanks around them."""
        begin, stop = pieces.bounds[first], pieces.bounds[last]
        if pieces.gains and end == stop:
            gain = pieces.gains[last - 1] - pieces.gains[first]
            stripped = self._gain(begin, start, end, True) if start > begin else 0
            if max(gain, stripped) < UNKNOWN // 2:
                total = pieces.sums[last] - pieces.sums[first] + gain
                return total - self.count(begin, start) - stripped
        return self.count(start, end)

    def _gains(self, bounds: Sequence[int]) -> Sequence[int]:
        text, close_gain = self.text, self._counter.close_gain
        found = []
        for first, at, last in zip(bounds, bounds[1:], bounds[2:], strict=False):
            gain = UNKNOWN
            if first + CLOSE <= at <= last - CLOSE:
                gain = close_gain(text[at - CLOSE : at + CLOSE].translate(_WORDS))
            found.append(self._gain(first, at, last, False) if gain == UNKNOWN else gain)
        return array("q", itertools.accumulate(found, initial=0))

    def _gain(self, first: int, at: int, last: int, begins: bool) -> int:
        """What first:at and at:last gain; with `begins`, nothing stands before them."""
        left, right = max(first, at - REACH), min(last, at + REACH)
        text = self.text[left:right]
        return self._counter.gain(text, at - left, begins and left == first, right == last)


def _pieces(
    bounds: Sequence[int], counts: Sequence[int], gains: Sequence[int] | None = None
) -> Pieces:
    return Pieces(bounds, counts, array("q", itertools.accumulate(counts, initial=0)), gains)


# --- the tokenizer of a model ------------------------------------------------------------------


def counter(model: Model) -> Counter:
    """Counts tokens as this model does."""
    if isinstance(model, Scratch):
        # rs-bpe reads special tokens such as <|endoftext|> as plain text.
        tokenizer = {"cl100k": openai.cl100k_base, "o200k": openai.o200k_base}[model.tokenizer]()
        return Counter(tokenizer.count, seamed=True)
    return Counter(_hub_tokenizer(model) if isinstance(model, Hub) else _local_tokenizer(model))


def _local_tokenizer(model: Local) -> Count:
    folder = store.locate(model.path, "model.path")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PipelineError(
            f"model.path: {model.path!r} has no tokenizer.json; save it there with "
            "`AutoTokenizer.from_pretrained(…).save_pretrained(folder)`"
        )
    return _tokenizer(path, "model.path")


def _hub_tokenizer(model: Hub) -> Count:
    def fetch(local_files_only: bool) -> str:
        return hf_hub_download(
            model.id, "tokenizer.json", revision=model.revision, local_files_only=local_files_only
        )

    try:
        try:
            path = fetch(local_files_only=True)
        except LocalEntryNotFoundError:
            path = fetch(local_files_only=False)
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        said = " ".join(str(error).split())
        raise PipelineError(
            f"model.id: {model.id!r} at {model.revision!r}: no tokenizer.json in the hub's cache, "
            f"and none could be fetched ({type(error).__name__}: {said[:200]}); check the name and "
            "the network, or use model=local"
        ) from None
    return _tokenizer(Path(path), "model.id")


def _tokenizer(path: Path, key: str) -> Count:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise PipelineError(f"{key}: {path}: not a tokenizer: {error}") from None
    # Either may be stored in tokenizer.json, and would make every long text look short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
