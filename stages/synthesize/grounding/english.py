"""English: what words share a stem, stand for each other, are opposites, or deny."""

import functools
import re
from collections.abc import Callable


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMERALS = {word: str(value) for value, word in enumerate(_NUMERALS.split())} | {"dozen": "12"}
_SIZES: tuple[tuple[str, dict[str, int]], ...] = (
    ("time", {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}),
    ("time", {"nanosecond": 1, "microsecond": 10**3, "millisecond": 10**6}),
    ("time", {"sec": 10**9, "second": 10**9, "min": 60 * 10**9, "minute": 60 * 10**9}),
    ("time", {"h": 3600 * 10**9, "hour": 3600 * 10**9, "day": 86_400 * 10**9}),
    ("time", {"week": 604_800 * 10**9}),
    ("months", {"month": 1, "year": 12}),
    ("bytes", {"byte": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}),
    ("bytes", {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}),
    ("bytes", {"kilobyte": 10**3, "megabyte": 10**6, "gigabyte": 10**9, "terabyte": 10**12}),
    ("share", {"%": 1}),
    ("length", {"mm": 1, "cm": 10, "km": 10**6, "metre": 1000, "meter": 1000}),
)
UNITS = {unit: (name, size) for name, sizes in _SIZES for unit, size in sizes.items()}
UNITS |= {unit + "s": size for unit, size in UNITS.items() if len(unit) > 3}
UNITS |= {"secs": UNITS["sec"], "mins": UNITS["min"], "hrs": UNITS["h"]}
ATTACHED = frozenset(["x", "k", "d", "m", "st", "nd", "rd", "th"])

NOT = listed(
    """
    not no never without neither nor none nothing nobody nowhere cannot unless
    """
)
WEAK = listed(
    """
    absent avoid avoids deny disable drop dropped drops except exclude excluded fail fails forbid
    gone hardly ignore ignored impossible independent instead lack lacks missing off omit omitted
    only optional prevent prevents rarely rather refuse regardless reject removed seldom skip
    skipped unable undefined
    """
)
"""Words that deny without a negation, or that a negation may be put into."""
CONDITIONS = listed("if when unless until except once while before after and or")
TWICE = NOT - {"nor"} | listed("unable impossible hardly optional unnecessary")
"""Words that turn a negation before them back."""
NOBODY = listed("no nothing none nobody nowhere")
MARKS = frozenset(".!?;:|¶…,()")
ENDS = frozenset(".!?|¶…")
SCOPE_ENDS = frozenset(".!?;:|¶()—–…") | listed(
    "but so because while although whereas that which who"
)
SMALL = listed("a an the of to in on at by for be is are was were been being it its")
OPENERS = listed(
    """
    another anything everyone everything neither nobody nor note nothing only otherwise
    someone something today yes
    """
)
"""Words that begin a sentence as a name may."""
ABBREVIATED = listed("e.g i.e a.m p.m u.s and/or either/or yes/no")
PREFIXES = ("un", "in", "im", "non", "dis", "ir")

_ENDINGS = """
    izations isations ization isation fulness ousness iveness ations ating ation ators
    ition ments ances ences ator ated ates ment ness ings ions ance ence able ible edly
    ally ives ate ing ies ied ers ors ion ive als ed es er or al ly s e y
"""
_SUFFIXES = tuple(_ENDINGS.split())
"""In the order in which they are tried."""
_SHORT = listed("ing ings ed es s e y ies ied er ers")
_FORMS = """
    choose: chose chosen; write: wrote written; run: ran; begin: began begun; keep: kept;
    hold: held; build: built; make: made; find: found; send: sent; take: took taken; give:
    gave given; see: saw seen; stand: stood; tell: told; say: said; leave: left; lose: lost;
    go: went gone goes; break: broke broken; throw: threw thrown; hide: hidden; know: known
    knew; show: shown; draw: drawn drew; spend: spent; mean: meant; bring: brought; buy:
    bought; catch: caught; read: read; lead: led; index: indices indexes indexed; child:
    children; use: used uses using; user: user users; day: daily; week: weekly; month:
    monthly; year: yearly; hour: hourly; pay: paid; forbid: forbidden; lay: laid;
    data: data; lie: lies lying
"""
_IRREGULAR = {
    form: word.strip()
    for word, forms in (row.split(":") for row in _FORMS.split(";"))
    for form in forms.split()
}


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """What inflected and derived forms of an English word share; `word` is in lower case."""
    word = _IRREGULAR.get(word, word)
    if len(word) <= 3 or not word.isalpha():
        return word
    for _ in range(3):
        for suffix in _SUFFIXES:
            head = word.removesuffix(suffix)
            least = 3 if suffix in _SHORT else 4
            if head != word and len(head) >= least and re.search("[aeiouy]", head):
                if suffix == "s" and head.endswith(("s", "u", "i")):
                    continue  # `class`, `status` and `basis` are no plurals
                word = head
                break
        else:
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word


_ALIKE = (
    "use employ utilize apply pass put",
    "run execute launch start begin",
    "stop end finish terminate halt",
    "remove delete discard revoke",
    "keep retain store save hold contain",
    "large big huge",
    "allow permit",
    "need require necessary must",
    "make create build generate produce",
    "show display print",
    "change modify alter edit adjust",
    "increase raise",
    "lower reduce decrease cut",
    "choose select pick",
    "get fetch retrieve obtain",
    "find locate look",
    "spread distribute share divide",
    "rarely seldom hardly",
    "several multiple many various",
    "folder directory",
    "setting configuration config option configure",
    "ignore skip omit leave",
    "wrong incorrect error fault",
    "entire whole complete full",
    "simultaneous concurrent once together parallel",
    "fast quick",
    "limit restrict cap maximum",
    "every each all any",
    "infinite unlimited unbounded",
    "name specify",
    "answer reply respond response",
    "tell say state describe",
    "return give yield",
    "reach access",
    "part section",
    "possible able can",
    "equal identical same",
    "seed start",
    "type kind sort",
    "give issue",
    "new recent",
    "support offer provide include",
    "mean denote",
    "exceed above over beyond",
    "destroy delete",
    "own belong",
)
"""Words, of which one may stand for the other."""
CLASSES = {stem(word): stem(row.split()[0]) for row in reversed(_ALIKE) for word in row.split()}
_GLUE = listed(
    """
    also another around automatically basically be become behave case consider currently
    else ensure especially etc example generally get go going however in just keep like mean
    meant merely normally note order otherwise please point purpose really simply since so
    still such therefore thing though thus together treat usually via want way whether yes
    """
)
"""Words that an answer may add to what the evidence says."""
GLUE_STEMS = frozenset(map(stem, {*_GLUE, *NOT, *NUMERALS, "only"}))

_PAIRS = """
    enable activate active | disable deactivate inactive
    allow permit accept let | forbid deny prohibit refuse reject disallow ban
    able capable possible | unable incapable impossible
    support have has contain provide offer | lack miss missing absent
    available present exist | unavailable absent missing gone
    include included including cover | exclude excluded excluding omit except
    required require mandatory necessary must obligatory | optional unnecessary superfluous
    keep kept retain preserve store stay remain | drop discard remove delete lose lost clear change
    valid correct right | invalid incorrect wrong malformed
    known know aware recognized | unknown unaware
    same identical equal | different differ distinct other another
    heed obey follow consider | ignore skip disregard
    recommend | discourage
    useful | useless
    safe secure | unsafe insecure
    visible show | hidden hide
    mutable writable | immutable readonly
    succeed success successful pass manage | fail failure raise error
    true | false
    on switchon | off switchoff
    yes | no
    full | empty blank
    always | never sometimes
    often usually normally | seldom rarely hardly
    everything everyone everybody all every | nothing none nobody
    everywhere | nowhere
    only solely exclusively merely | also even
    before earlier until prior previously ahead precede | after afterwards later once follow since
    first earliest oldest | last latest final finally newest
    atleast minimum min smallest lowest shortest least | atmost maximum max largest longest most
    more above over exceed upper higher highest larger big longer increase raise grow rise rose \
    extend lengthen | less fewer below under within lower lowest smaller short decrease reduce \
    shrink fall fell shorten
    faster quicker | slower
    several multiple | single
    better best | worse worst
    cheap | expensive costly
    easy | hard difficult
    new newer recent | old older
    automatic automatically | manual manually hand
    local locally | remote remotely
    public | private
    internal | external
    ascending | descending
    left leftmost | right rightmost
    inside | outside
    synchronous | asynchronous
    import | export
    upload | download
    encode | decode
    encrypt | decrypt
    lock | unlock
    add | remove delete
    start begin continue | stop end finish
    open | close closed
    next | previous
    read | write
    input | output
    send | receive
    online | offline
    backward backwards | forward forwards
    positive | negative
    reachable accessible | unreachable inaccessible
    eager immediately | lazy lazily
    free | costly cost
    create | destroy
    connect | disconnect
    temporary | permanent
    relative | absolute
"""
"""Words, of which one does not stand for the other: of each row, those before and after the bar."""


def _sides(of: Callable[[int], int]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for row in _PAIRS.strip().splitlines():
        sides = [frozenset(map(stem, side.split())) for side in row.split("|")]
        for place, side in enumerate(sides):
            for word in side:
                found[word] = found.get(word, frozenset()) | sides[of(place)]
    return found


_OPPOSITE = _sides(lambda place: 1 - place)
_SAME = _sides(lambda place: place)


def opposites(said: str) -> frozenset[str]:
    return _OPPOSITE.get(said, frozenset())


def companions(said: str) -> frozenset[str]:
    return _SAME.get(said, frozenset())


# Each is one word to the rules below, and looked for where its last words stand at all.
PHRASES = [
    (hints.split(), re.compile(rf"(?i)\b(?:{pattern})(?!\w)"), f" {word} ")
    for hints, pattern, word in (
        (
            "least than minimum",
            "at least|no (?:less|fewer) than|not (?:less|fewer) than|a minimum of",
            "atleast",
        ),
        (
            "most than maximum up",
            "at most|no (?:more|longer|later) than|not more than|up to|a maximum of",
            "atmost",
        ),
        (
            "exceed than",
            "(?:must|may|can|could|should|will|do|does)? ?(?:not|never|cannot|n't) "
            "(?:exceed|be (?:larger|bigger|longer|more|greater|higher) than)",
            "atmost",
        ),
        (
            "not",
            "not only(?=.{1,90}\\bbut\\b)|not necessarily|why not|(?:whether )?or not|if not",
            "",
        ),
        ("matter", "no matter", ""),
        ("on", "(?:turn|switch)(?:s|es|ed|ing)? on|on by default", "switchon"),
        ("off", "(?:turn|switch)(?:s|es|ed|ing)? off|off by default", "switchoff"),
        ("than", "other than", "except"),
        ("cent", "per ?cent", "%"),
    )
]
