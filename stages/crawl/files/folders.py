"""A folder that is not on this machine, walked level by level up to the limits of a crawl."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from stages.crawl.files import listing
from stages.crawl.settings import Config
from stages.crawl.site import Filter


@dataclass(frozen=True)
class Folder:
    """Where a walk begins, and what is looked for there."""

    name: str
    """Of the folder, with a slash at its end, or of the one file."""
    is_file: bool
    pattern: str | None
    """A glob, relative to the folder."""
    wanted: Filter

    @classmethod
    def of(cls, root: str, is_file: bool, wanted: Filter, magic: str = "*?[") -> "Folder":
        found = re.search(f"[{re.escape(magic)}]", root)
        if found:
            start = root.rfind("/", 0, found.start()) + 1
            return cls(root[:start], False, unquote(root[start:]), wanted)
        return cls(root if is_file else root.rstrip("/") + "/", is_file, None, wanted)

    def renamed(self, name: str) -> "Folder":
        return replace(self, name=name)

    def address(self, name: str) -> str:
        """The path of a file in the folder."""
        folder = self.name.rpartition("/")[0] + "/"
        return unquote(name.removeprefix(folder))

    def wants(self, name: str) -> bool:
        address = self.address(name)
        fits = self.pattern is None or listing.glob(self.pattern).fullmatch(address)
        return bool(fits) and self.wanted.keeps(listing.as_path(address))

    def may_hold(self, name: str) -> bool:
        """Can a folder in it hold what is looked for?"""
        if self.pattern is None or "**" in self.pattern:
            return True
        return self.address(name).count("/") <= self.pattern.count("/")


def walk(
    folder: Folder,
    inside: Callable[[str], Iterable[str]],
    fault: Callable[[str], str],
    cfg: Config,
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The wanted files with their addresses, and how many names were left out, by the limit.

    `inside` gives the names in a folder, of which those of folders end in a slash; no more folders
    are asked for than files may be found. What is left out does not depend on its order.
    """
    if folder.is_file:
        names = [folder.name] if folder.wants(folder.name) else []
        return [(name, folder.address(name)) for name in names], {}
    found: list[str] = []
    left: dict[str, str] = {}
    seen = {folder.name}
    level, num_asked = [folder.name], 0
    for _ in range(cfg.max_depth + 1):
        deeper: list[str] = []
        for at in level:
            if max(num_asked, len(found)) >= cfg.max_pages:
                left[at] = "max_pages"
                continue
            num_asked += 1
            for name in sorted(set(inside(at)) - seen):
                seen.add(name)
                why = fault(name)
                if why:
                    left[name] = why
                elif name.endswith("/"):
                    deeper += [name] if folder.may_hold(name) else []
                elif folder.wants(name) and len(found) < cfg.max_pages:
                    found.append(name)
                elif folder.wants(name):
                    left[name] = "max_pages"
        level = sorted(deeper)
    left |= dict.fromkeys(level, "max_depth")
    return [(name, folder.address(name)) for name in found], dict(Counter(left.values()))
