"""No request leaves for an address inside: judged on what a name resolves to, at connect.

Scrapy connects by `guard.reactor`; git, fsspec and Chromium go through `guard.proxy`.
"""

from stages.crawl.guard.addresses import Allowed, ForbiddenError, allowance, refusal, resolve
from stages.crawl.guard.proxy import Proxy, proxy
from stages.crawl.guard.ways import Git, git, storage

__all__ = [
    "Allowed",
    "ForbiddenError",
    "Git",
    "Proxy",
    "allowance",
    "git",
    "proxy",
    "refusal",
    "resolve",
    "storage",
]
