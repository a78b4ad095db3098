"""How a file is named to readers: by its public address, or by its path in the source."""

import re
from urllib.parse import quote, urljoin


def publish(public: str | None, path: str) -> str:
    """`path` is relative to the source's folder; what would end it in an address is escaped."""
    if public is not None:
        return urljoin(public.rstrip("/") + "/", quote(path, safe="/~!$&'()*+,;=:@"))
    return re.sub(r"[%#?\x00-\x20\x7f]", lambda sign: quote(sign[0]), path)
