"""Scrapy's connections: a resolver that hands on what it has checked, and no way around it."""

from collections.abc import Sequence
from typing import Any, cast

from scrapy.crawler import Crawler
from scrapy.resolver import HostResolution
from twisted.internet import defer, threads
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer  # type: ignore[import-untyped]

from stages.crawl.guard.addresses import Address, Allowed, ForbiddenError, plain, resolve


def settings(allow_hosts: Sequence[str], only: bool) -> dict[str, Any]:
    """What a crawler needs so that the guard stands in its only way out.

    `only`: the hosts that are allowed are all that may be asked.
    """
    return {
        "DOWNLOAD_HANDLERS": dict.fromkeys(("data", "file", "ftp", "s3")),
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "GUARD_ALLOWED": list(allow_hosts),
        "GUARD_ONLY": only,
        "HTTPPROXY_ENABLED": False,  # a proxy of the environment would resolve names itself
        "TELNETCONSOLE_ENABLED": False,
        "TWISTED_DNS_RESOLVER": "stages.crawl.guard.reactor.Resolver",
    }


@implementer(IHostnameResolver)
class Resolver:
    """Twisted asks it for every host, an address included, and connects to what it answers."""

    def __init__(self, reactor: Any, allowed: Allowed) -> None:
        self._reactor = reactor
        self._allowed = allowed
        self._connect = reactor.connectTCP
        self._passed: set[str] = set()
        self.refused: dict[str, ForbiddenError] = {}
        """Why a host has no address, since Twisted has no word for it."""

    @classmethod
    def from_crawler(cls, crawler: Crawler, reactor: Any) -> "Resolver":
        named = crawler.settings.getlist("GUARD_ALLOWED")
        return cls(reactor, Allowed.of(named, crawler.settings.getbool("GUARD_ONLY")))

    def install_on_reactor(self) -> None:
        self._reactor.installNameResolver(self)
        # Every TCP connection is made here, so that no endpoint comes around the resolver.
        self._reactor.connectTCP = self._connect_checked

    def _connect_checked(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in self._passed:
            raise ForbiddenError(host, host, "never checked")
        return self._connect(host, port, *args, **kwargs)

    def resolveHostName(  # noqa: N802
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[type] | None = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> IHostResolution:
        receiver: Any = resolutionReceiver
        resolution = HostResolution(hostName)
        receiver.resolutionBegan(resolution)
        asked = threads.deferToThread(resolve, hostName, portNumber, self._allowed)

        def answer(addresses: list[Address]) -> None:
            self.refused.pop(plain(hostName), None)
            for address in addresses:
                kind = IPv4Address if address.version == 4 else IPv6Address
                self._passed.add(str(address))
                receiver.addressResolved(kind("TCP", str(address), portNumber))

        def explain(failure: Any) -> None:
            error = failure.trap(ForbiddenError, OSError)
            if error is ForbiddenError:
                self.refused[plain(hostName)] = failure.value

        asked.addCallbacks(answer, explain)
        asked.addCallback(lambda _: receiver.resolutionComplete())
        asked.addErrback(defer.logError)
        return cast(IHostResolution, resolution)


def refused(host: str) -> ForbiddenError | None:
    """Why the running crawler got no connection to a host, where that was the guard."""
    from twisted.internet import reactor

    resolver = getattr(reactor, "nameResolver", None)
    return resolver.refused.get(plain(host)) if isinstance(resolver, Resolver) else None
