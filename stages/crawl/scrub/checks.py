"""Whether a finding is real, or what documentation writes in the place of one."""

import ipaddress
import math
import re
from collections import Counter

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
STOCK_SSNS = frozenset(("078-05-1120", "219-09-9999", "123-45-6789", "457-55-5462"))
STOCK_SIGNATURE = "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"  # of the token that jwt.io shows


# --- checks ------------------------------------------------------------------------------------


def is_email(found: str) -> bool:
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


def is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    if (
        re.search(r"55501\d\d$", digits)
        or len(set(digits)) <= 2
        or digits in "01234567890123456789"
    ):
        return False
    return (9 if found.startswith("+") else 7) <= len(digits) <= 15


def is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    if digits in _STOCK_CARDS or len(set(digits)) <= 2:
        return False
    doubled = [int(digit) for digit in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(2 * n - 9 * (n > 4) for n in doubled)
    return total % 10 == 0


def is_iban(found: str) -> bool:
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


def is_public_ip(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def is_key(found: str) -> bool:
    return not found.endswith("EXAMPLE") and is_random(found.rpartition("_")[2], 2.5)


def is_private_key(found: str) -> bool:
    """The body is base64 and no ellipsis."""
    body = re.sub(r"-----[^-]+-----|(?m:^[\w-]+:.*$)", "", found)
    return len(re.findall(r"[A-Za-z0-9+/=]{40,}", body)) >= 1 and _entropy(body) > 4


def is_credential(found: str) -> bool:
    user, _, rest = found.partition(":")
    password, _, host = rest.rpartition("@")
    if _STOCK_HOSTS.search(re.sub(r":\d+$", "", host)) or re.match(r"127\.|\[?::1|10\.", host):
        return False
    if password == user or _STOCK_WORDS.search(password):
        return False
    # `scott:tiger@db` and `user:pass@host` say what stands where; they are no one's.
    return len(password) >= 6 and len(_classes(password)) >= 2


def is_secret(found: str) -> bool:
    if _STOCK_WORDS.search(found) or found.endswith(("EXAMPLEKEY", ")")):
        return False
    if re.fullmatch(r"[\w-]+(?:\.[a-zA-Z_][\w-]*)+|[a-z]+(?:[_-][a-z0-9]+)*|[\d.,:-]+", found):
        return False  # a name of something
    if len(found) >= 16:
        return is_random(found, 3.0)
    return len(found) >= 8 and len(_classes(found)) >= 3 and _entropy(found) > 2.7


def is_random(found: str, least: float) -> bool:
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
