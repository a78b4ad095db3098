"""How a file is named to readers: by its public address, or by its path in the source."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, urljoin


def publish(public: str | None, path: str) -> str:
    """`path` is relative to the source's folder; what would end it in an address is escaped."""
    if public is not None:
        return urljoin(public.rstrip("/") + "/", quote(path, safe="/~!$&'()*+,;=:@"))
    return re.sub(r"[%#?\x00-\x20\x7f]", lambda sign: quote(sign[0]), path)


@dataclass(frozen=True)
class Place:
    """Where a file stands: its path in the source's folder, and that folder's public address."""

    path: str
    public: str | None

    @property
    def url(self) -> str:
        """As readers know it."""
        return publish(self.public, self.path)

    @property
    def stem(self) -> str:
        """The file's name without its ending: what it is called if it says nothing itself."""
        return PurePosixPath(self.path).stem
