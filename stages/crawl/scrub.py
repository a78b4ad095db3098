"""A text without personal data and secrets: a placeholder such as `<email>` stands for each.

What documentation writes in their place stays: user@example.com, 192.0.2.1, AKIAIOSFODNN7EXAMPLE,
555-0100, xxxx. The rules are patterns with checks (Luhn, mod 97, entropy): they find what has a
form of its own, and no names or postal addresses.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stages.core.records import Heading
from stages.crawl.page import Page
from stages.crawl.settings import Kind, Scrub


@dataclass(frozen=True)
class Rule:
    """What is looked for. The group `found`, or else the whole match, is what is replaced."""

    kind: Kind
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda found: True
    hint: str = ""
    """Without these characters a text holds none: most texts are done at once."""


def scrub(page: Page, cfg: Scrub) -> tuple[Page, Counter[str]]:
    """The page with placeholders in its text and titles, and how many of each kind."""
    text, moves, counts = _replaced(page.text, cfg)
    title, _, in_title = _replaced(page.title, cfg)
    counts = counts or in_title  # else the title stands in the text too
    if not counts:
        return page, counts
    headings = tuple(
        Heading(
            start=heading.start + sum(delta for place, delta in moves if place < heading.start),
            level=heading.level,
            title=clean(heading.title, cfg),
            anchor=heading.anchor,
        )
        for heading in page.headings
    )
    return replace(page, text=text, headings=headings, title=title), counts


def clean(text: str, cfg: Scrub) -> str:
    """The text with placeholders."""
    return _replaced(text, cfg)[0]


def find(text: str, cfg: Scrub) -> list[tuple[int, int, Kind]]:
    """What is to be replaced, from where to where, without overlaps; the earlier rule wins."""
    spans: list[tuple[int, int, Kind]] = []
    allowed = [re.compile(pattern) for pattern in cfg.allow]
    for rule in RULES:
        if rule.kind not in cfg.kinds or (rule.hint and rule.hint not in text):
            continue
        for match in rule.pattern.finditer(text):
            group = "found" if "found" in rule.pattern.groupindex else 0
            start, end = match.span(group)
            found = match.group(group)
            if start < 0 or not rule.is_real(found) or any(p.search(found) for p in allowed):
                continue
            if not any(start < other[1] and other[0] < end for other in spans):
                spans.append((start, end, rule.kind))
    return sorted(spans)


def _replaced(text: str, cfg: Scrub) -> tuple[str, list[tuple[int, int]], Counter[str]]:
    """The text, by how many bytes it moved behind which byte of the old one, and the counts.

    What is left is read again until nothing is found: a placeholder may end a longer number.
    """
    counts: Counter[str] = Counter()
    moves: list[tuple[int, int]] = []
    while spans := find(text, cfg):
        parts, last, size, step = [], 0, 0, []
        for start, end, kind in spans:
            placeholder = f"<{kind.replace('_', '-')}>"
            size += len(text[last:start].encode())
            width = len(text[start:end].encode())
            step.append((size, len(placeholder.encode()) - width))
            size += width
            parts += [text[last:start], placeholder]
            last = end
            counts[kind] += 1
        text = "".join([*parts, text[last:]])
        moves += [(_earlier(place, moves), delta) for place, delta in step]
    return text, moves, counts


def _earlier(place: int, moves: Sequence[tuple[int, int]]) -> int:
    """The byte of the first text that a byte of the present one was."""
    for before, delta in sorted(moves):
        if before < place:
            place = max(before, place - delta)
    return place


# --- what is no secret -------------------------------------------------------------------------

_STOCK_HOSTS = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|local|localdomain"
    r"|(?:your|my|some)?(?:-?domain|-?company|-?site|-?server|-?host|-?organi[sz]ation|-?email)"
    r"\.(?:com|org|net|tld)|(?:foo|bar|baz|acme|spam|eggs|test|xyz|abc|xxx)\.(?:com|org|net))$",
    re.IGNORECASE,
)
_STOCK_WORDS = re.compile(
    r"example|sample|dummy|placeholder|changeme|change[_-]me|redacted|replace|insert|your|my[_-]"
    r"|fake|todo|secret|passw|^pass$|token|api_?key|x{3,}|\*{3,}|\.{3,}|…|[<>{}$%]|0{6,}|12345|abcdef"
    r"|foo|bar\b|lorem",
    re.IGNORECASE,
)
_STOCK_CARDS = frozenset(
    re.findall(
        r"\d+",
        """
        4111111111111111 4242424242424242 4012888888881881 4222222222222 5555555555554444
        5105105105105100 2223003122003222 378282246310005 371449635398431 378734493671000
        6011111111111117 6011000990139424 30569309025904 38520000023237 3530111333300000
        3566002020360505 4000056655665556 5200828282828210
        """,
    )
)
_STOCK_IBANS = frozenset(
    re.findall(
        r"\w+",
        """
        GB82WEST12345698765432 GB29NWBK60161331926819 DE89370400440532013000
        FR1420041010050500013M02606 NL91ABNA0417164300 BE68539007547034
        CH9300762011623852957 ES9121000418450200051332
        """,
    )
)
_STOCK_SSNS = frozenset(("078-05-1120", "219-09-9999", "123-45-6789", "457-55-5462"))
_STOCK_SIGNATURE = "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"  # of the token that jwt.io shows


# --- checks ------------------------------------------------------------------------------------


def _is_email(found: str) -> bool:
    name, _, host = found.replace("%40", "@").rpartition("@")
    if name.lower() in _NO_ONE:
        return False
    return not _STOCK_HOSTS.search(host) and not host.lower().endswith(_FILES)


# Accounts of servers, as in git@github.com:owner/name, and words for what stands there.
_NO_ONE = frozenset(
    re.findall(
        r"\S+",
        """
        git hg svn cvs anonymous anoncvs user username name you yourname your.name someone
        somebody me pass password email joe.user
        """,
    )
)
_FILES = (".py", ".js", ".so", ".md", ".sh", ".rs", ".ts", ".txt", ".png", ".html", ".service")


def _is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    if (
        re.search(r"55501\d\d$", digits)
        or len(set(digits)) <= 2
        or digits in "01234567890123456789"
    ):
        return False
    return (9 if found.startswith("+") else 7) <= len(digits) <= 15


def _is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    if digits in _STOCK_CARDS or len(set(digits)) <= 2:
        return False
    doubled = [int(digit) for digit in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(2 * n - 9 * (n > 4) for n in doubled)
    return total % 10 == 0


def _is_iban(found: str) -> bool:
    compact = found.replace(" ", "")
    if compact in _STOCK_IBANS or len(compact) != _IBAN_LENGTHS.get(compact[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(\w\w):(\d+)",
        """
        AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28
        CZ:24 DE:22 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18
        GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32
        LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15
        PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 SA:24 SC:31 SE:24 SI:19 SK:24 SM:27 ST:25
        SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20
        """,
    )
}


def _is_public_ip(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _is_key(found: str) -> bool:
    return not found.endswith("EXAMPLE") and _is_random(found.rpartition("_")[2], 2.5)


def _is_private_key(found: str) -> bool:
    """The body is base64 and no ellipsis."""
    body = re.sub(r"-----[^-]+-----|(?m:^[\w-]+:.*$)", "", found)
    return len(re.findall(r"[A-Za-z0-9+/=]{40,}", body)) >= 1 and _entropy(body) > 4


def _is_credential(found: str) -> bool:
    user, _, rest = found.partition(":")
    password, _, host = rest.rpartition("@")
    if _STOCK_HOSTS.search(re.sub(r":\d+$", "", host)) or re.match(r"127\.|\[?::1|10\.", host):
        return False
    if password == user or _STOCK_WORDS.search(password):
        return False
    # `scott:tiger@db` and `user:pass@host` say what stands where; they are no one's.
    return len(password) >= 6 and len(_classes(password)) >= 2


def _is_secret(found: str) -> bool:
    if _STOCK_WORDS.search(found) or found.endswith(("EXAMPLEKEY", ")")):
        return False
    if re.fullmatch(r"[\w-]+(?:\.[a-zA-Z_][\w-]*)+|[a-z]+(?:[_-][a-z0-9]+)*|[\d.,:-]+", found):
        return False  # a name of something
    if len(found) >= 16:
        return _is_random(found, 3.0)
    return len(found) >= 8 and len(_classes(found)) >= 3 and _entropy(found) > 2.7


def _is_random(found: str, least: float) -> bool:
    return (
        not _STOCK_WORDS.search(found)
        and bool(re.search(r"\d", found) and re.search(r"[a-zA-Z]", found))
        and _entropy(found) >= least
    )


def _entropy(text: str) -> float:
    """Bits per character, by how often each one stands there."""
    counts = Counter(text).values()
    return -math.fsum(n / len(text) * math.log2(n / len(text)) for n in sorted(counts))


def _classes(text: str) -> set[str]:
    kinds = {"lower": r"[a-z]", "upper": r"[A-Z]", "digit": r"\d", "other": r"[^\w\s]"}
    return {name for name, pattern in kinds.items() if re.search(pattern, text)}


# --- the rules, the surest first ---------------------------------------------------------------

_NAMED = (
    r"(?i:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|(?:access|secret|account|auth|private"
    r"|signing|encryption)[_-]?key|credentials?)(?i:[_-]?(?:id|key|value|hash))?"
)
RULES = (
    Rule(
        "private_key",
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
        _is_private_key,
        hint="PRIVATE KEY",
    ),
    Rule(
        "jwt",
        re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}(?![\w-])"),
        lambda found: not found.endswith(_STOCK_SIGNATURE),
        hint="eyJ",
    ),
    Rule(
        "api_key",
        re.compile(
            r"(?<![A-Za-z0-9])(?:"
            r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"
            r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255}|glpat-[\w-]{20,64}"
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{10,250}"
            r"|https://hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"
            r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"
            r"|[srp]k_(?:live|test)_[A-Za-z0-9]{16,247}|whsec_[A-Za-z0-9+/=]{20,}"
            r"|sk-ant-[\w-]{20,}|sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}"
            r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{16,}\.[\w-]{16,}"
            r")(?![A-Za-z0-9])"
        ),
        _is_key,
    ),
    Rule(
        "url_credentials",
        re.compile(r"(?<=://)[^\s/:@<>\"'`()\[\]]*:[^\s/@<>\"'`()\[\]]+@[\w.\[\]:-]+"),
        _is_credential,
        hint="://",
    ),
    Rule(
        "secret",
        re.compile(
            rf"{_NAMED}[\"'`]{{0,2}}\s{{0,3}}(?::=|=>|=|:)\s{{0,3}}[\"'`]{{0,2}}"
            r"(?P<found>[^\s\"'`,;<>()\[\]{}|]{8,})"
        ),
        _is_secret,
    ),
    Rule(
        "secret",
        re.compile(r"(?i:\b(?:bearer|basic)\s{1,3})(?P<found>[A-Za-z0-9._~+/-]{20,}={0,2})"),
        _is_secret,
    ),
    Rule(
        "email",
        re.compile(
            r"(?<![\w.+%/@-])[A-Za-z0-9_][\w.+'-]{0,63}(?:@|%40)"
            r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
            r"(?![\w@-]|\.\w|:[\w~/])"
        ),
        _is_email,
    ),
    Rule(
        "iban",
        re.compile(r"(?<![\w])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w])"),
        _is_iban,
    ),
    Rule(
        "credit_card",
        re.compile(
            r"(?<![\w.+/-])(?=[2-6])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -]?)\d{6}\2\d{5})"
            r"(?![\w/-]|\.\d)"
        ),
        _is_card,
    ),
    Rule(
        "ssn",
        re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
        lambda found: found not in _STOCK_SSNS,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![\w.+(/=-])\+[1-9]\d{0,2}(?:[ .-]?\(0?\d{1,4}\))?(?:[ .-]\d{1,6}){2,5}"
            r"(?![\w-]|\.\d)"
        ),
        _is_phone,
        hint="+",
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d"
            r"(?(1)\1|[ .-])\d{4}(?![\w-]|\.\d)"
        ),
        _is_phone,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?i:\b(?:tele)?(?:phone|fon|fax|mobile|cell|tel)\b(?: number| no)?\.?:?\s{1,3}|"
            r"\btel:)(?P<found>\+?\(?\d[\d ()/.-]{5,18}\d)(?![\w-])"
        ),
        _is_phone,
    ),
    Rule(
        "ip_address",
        re.compile(
            r"(?<![\w.:/-])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9a-fA-F]{1,4}:){2,7}:?"
            r"(?:[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*)?)(?![\w:]|\.\d)"
        ),
        _is_public_ip,
    ),
)
