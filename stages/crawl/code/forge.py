"""Where a repository's files are shown on the web: GitHub, GitLab, Bitbucket, Gitea."""

import re
from typing import Literal
from urllib.parse import quote, urlsplit

Forge = Literal["github", "gitlab", "bitbucket", "gitea"]

_HOSTS: dict[str, Forge] = {
    "github": "github",
    "gitlab": "gitlab",
    "bitbucket": "bitbucket",
    "gitea": "gitea",
    "forgejo": "gitea",
    "codeberg": "gitea",
}
_FOLDERS: dict[Forge, str] = {
    "github": "blob",
    "gitlab": "-/blob",
    "bitbucket": "src",
    "gitea": "src/commit",
}
_SCP = re.compile(r"(?:[\w.-]+@)?([\w.-]+):(?!//)(.+)$")


def base(remote: str, commit: str, forge: Forge | None = None) -> str | None:
    """The address of a remote's files at a commit, without a user or password of the remote's own;
    None where no forge is known by the host's name, and none is given.
    """
    scp = _SCP.match(remote) if "://" not in remote else None
    if scp:
        host, port, path = scp[1], None, scp[2]
    else:
        try:
            parts = urlsplit(remote)
            host, port, path = parts.hostname or "", parts.port, parts.path
        except ValueError:
            return None
        if parts.scheme not in ("http", "https", "ssh", "git"):
            return None
        if parts.scheme in ("ssh", "git"):
            port = None
    path = path.strip("/").removesuffix(".git").strip("/")
    known = forge or next((kind for word, kind in _HOSTS.items() if word in host.lower()), None)
    if known is None or not host or "/" not in path:
        return None
    place = f"{host}:{port}" if port else host
    scheme = "http" if remote.startswith("http://") else "https"
    return f"{scheme}://{place}/{quote(path, safe='/~')}/{_FOLDERS[known]}/{commit}"


def lines(at: str, first: int, last: int) -> str:
    """The anchor of a range of lines, as the forge of the address writes it."""
    if "/-/blob/" in at:
        return f"L{first}-{last}" if last > first else f"L{first}"
    if "bitbucket" in at and "/src/" in at and "/src/commit/" not in at:
        return f"lines-{first}:{last}" if last > first else f"lines-{first}"
    return f"L{first}-L{last}" if last > first else f"L{first}"
