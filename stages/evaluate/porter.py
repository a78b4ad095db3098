"""A word in lower case → its Porter stem, with the extensions that nltk and so `rouge-score` use.

Written here since importing nltk for this alone takes seconds: it brings scipy and scikit-learn.
M. Porter, "An algorithm for suffix stripping", Program 14.3 (1980); the steps bear his numbers.
"""

Rules = tuple[tuple[str, str], ...]

IRREGULAR = {
    "sky": "sky",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}

# In the order in which they are tried: the first suffix that fits decides.
STEP_2: Rules = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
)
STEP_3: Rules = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion"),
    *("ou", "ism", "ate", "iti", "ous", "ive", "ize"),
)


def stem(word: str) -> str:
    """The stem; `word` is of a-z and 0-9, and digits count as consonants."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _step_2(_step_1c(_step_1b(_step_1a(word))))
    return _step_5(_step_4(_replace(word, STEP_3)))


def _shape(word: str) -> str:
    """`c` or `v` per letter; a y is a consonant unless it follows one."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    return _shape(word).count("vc")


def _ends_short(word: str) -> bool:
    """Whether it ends as `hop` does, but not in w, x or y; or is as `at`."""
    shape = _shape(word)
    return (shape.endswith("cvc") and word[-1] not in "wxy") or shape == "vc"


def _replace(word: str, rules: Rules) -> str:
    for suffix, replacement in rules:
        if word.endswith(suffix):
            head = word[: -len(suffix)]
            return head + replacement if _measure(head) > 0 else word
    return word


def _step_1a(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        head = word.removesuffix(suffix)
        if head != word and "v" in _shape(head):
            break
    else:
        return word
    if head.endswith(("at", "bl", "iz")):
        return head + "e"
    if head[-1:] == head[-2:-1] and _shape(head)[-1] == "c":
        return head if head[-1] in "lsz" else head[:-1]
    return head + "e" if _measure(head) == 1 and _ends_short(head) else head


def _step_1c(word: str) -> str:
    head = word[:-1]
    return head + "i" if word.endswith("y") and len(head) > 1 and _shape(head)[-1] == "c" else word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace(word, STEP_2)


def _step_4(word: str) -> str:
    for suffix in STEP_4:
        if word.endswith(suffix):
            head = word[: -len(suffix)]
            fits = _measure(head) > 1 and (suffix != "ion" or head[-1] in "st")
            return head if fits else word
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        head = word[:-1]
        measure = _measure(head)
        if measure > 1 or (measure == 1 and not _ends_short(head)):
            word = head
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
