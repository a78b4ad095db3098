"""The ways out that are not Scrapy's, each made to go through the proxy: git and fsspec."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from stages.core.errors import PipelineError
from stages.crawl.guard.proxy import Proxy

STORAGES = ("http", "https", "s3")
"""What fsspec may open besides a path of this machine: each is known to obey a proxy."""


@dataclass(frozen=True)
class Git:
    """How git is to be called: `["git", *options, "clone", …]` with this environment, whole."""

    options: list[str]
    environment: dict[str, str]


def git(proxy: Proxy | None) -> Git:
    """For a repository at an http(s) address; without a proxy, for one on this machine's disk.

    Settings and environment of the user are left out: they could name another proxy, a helper
    program or other addresses. What a repository itself asks to run is off.
    """
    settings = {
        "protocol.allow": "never",
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.symlinks": "false",
        "submodule.recurse": "false",
        "fetch.recurseSubmodules": "false",
        "transfer.bundleURI": "false",
        "safe.directory": "*",  # it is read, and nothing in it is run
        "gc.auto": "0",
    }
    if proxy is None:
        settings["protocol.file.allow"] = "always"
    else:
        settings |= {
            "protocol.http.allow": "always",
            "protocol.https.allow": "always",
            "http.proxy": proxy.url,
            "http.followRedirects": "true",  # through the proxy too
            "http.sslVerify": "true",
            "http.lowSpeedLimit": "1000",
            "http.lowSpeedTime": "60",
        }
    return Git(
        [word for key, value in settings.items() for word in ("-c", f"{key}={value}")],
        {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.devnull,
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
        },
    )


def storage(url: str, proxy: Proxy, key: str = "source.path") -> dict[str, Any]:
    """fsspec's options for an address that is not on this machine: through the proxy alone."""
    scheme, _, rest = url.partition("://")
    if "::" in url or scheme not in STORAGES or not rest:
        raise PipelineError(
            f"{key}: {url!r}: expected a path, or an address of {', '.join(STORAGES)}"
        )
    if scheme == "s3":
        # Without this botocore asks the metadata address for keys.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        return {"config_kwargs": {"proxies": {"http": proxy.url, "https": proxy.url}}}
    if not urlsplit(url).hostname:
        raise PipelineError(f"{key}: {url!r}: expected an address with a host")
    return {"proxy": proxy.url, "client_kwargs": {"trust_env": False}, "skip_instance_cache": True}
