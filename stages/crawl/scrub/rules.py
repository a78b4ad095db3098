"""What is looked for, as patterns with checks (Luhn, mod 97, entropy), the surest first."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from stages.crawl.scrub import checks
from stages.crawl.settings import Kind


@dataclass(frozen=True)
class Rule:
    """What is looked for. The group `found`, or else the whole match, is what is replaced."""

    kind: Kind
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda found: True
    hint: str = ""
    """Without these characters a text holds none: most texts are done at once."""

    @cached_property
    def anywhere(self) -> re.Pattern[str]:
        """The pattern whatever stands before: behind a finding that is a placeholder's end."""
        return re.compile(_BEFORE.sub("", self.pattern.pattern), self.pattern.flags)


_BEFORE = re.compile(r"^\(\?<!\[[^\]]*\]\)")
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
        checks.is_private_key,
        hint="PRIVATE KEY",
    ),
    Rule(
        "jwt",
        re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}(?![\w-])"),
        lambda found: not found.endswith(checks.STOCK_SIGNATURE),
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
        checks.is_key,
    ),
    Rule(
        "url_credentials",
        re.compile(r"(?<=://)[^\s/:@<>\"'`()\[\]]*:[^\s/@<>\"'`()\[\]]+@[\w.\[\]:-]+"),
        checks.is_credential,
        hint="://",
    ),
    Rule(
        "secret",
        re.compile(
            rf"{_NAMED}[\"'`]{{0,2}}\s{{0,3}}(?::=|=>|=|:)\s{{0,3}}[\"'`]{{0,2}}"
            r"(?P<found>[^\s\"'`,;<>()\[\]{}|]{8,})"
        ),
        checks.is_secret,
    ),
    Rule(
        "secret",
        re.compile(r"(?i:\b(?:bearer|basic)\s{1,3})(?P<found>[A-Za-z0-9._~+/-]{20,}={0,2})"),
        checks.is_secret,
    ),
    Rule(
        "email",
        re.compile(
            r"(?<![\w.+%/@-])[A-Za-z0-9_][\w.+'-]{0,63}(?:@|%40)"
            r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
            r"(?![\w@-]|\.\w|:[\w~/])"
        ),
        checks.is_email,
    ),
    Rule(
        "iban",
        re.compile(r"(?<![\w])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w])"),
        checks.is_iban,
    ),
    Rule(
        "credit_card",
        re.compile(
            r"(?<![\w.+/-])(?=[2-6])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -]?)\d{6}\2\d{5})"
            r"(?![\w/-]|\.\d)"
        ),
        checks.is_card,
    ),
    Rule(
        "ssn",
        re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
        lambda found: found not in checks.STOCK_SSNS,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![\w.+(/=-])\+[1-9]\d{0,2}(?:[ .-]?\(0?\d{1,4}\))?(?:[ .-]\d{1,6}){2,5}"
            r"(?![\w-]|\.\d)"
        ),
        checks.is_phone,
        hint="+",
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d"
            r"(?(1)\1|[ .-])\d{4}(?![\w-]|\.\d)"
        ),
        checks.is_phone,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?i:\b(?:tele)?(?:phone|fon|fax|mobile|cell|tel)\b(?: number| no)?\.?:?\s{1,3}|"
            r"\btel:)(?P<found>\+?\(?\d[\d ()/.-]{5,18}\d)(?![\w-])"
        ),
        checks.is_phone,
    ),
    Rule(
        "ip_address",
        re.compile(
            r"(?<![\w.:/-])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9a-fA-F]{1,4}:){2,7}:?"
            r"(?:[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*)?)(?![\w:]|\.\d)"
        ),
        checks.is_public_ip,
    ),
)
