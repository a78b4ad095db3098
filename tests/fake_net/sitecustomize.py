"""A network that is not there, for any Python process that starts with this folder on its path.

FAKE_NET names a JSON file: what names resolve to, one answer after the other; and the port of the
server on loopback that stands in for every public address. Each connect is written down, and none
leaves the machine.
"""

import ipaddress
import json
import os
import socket
from pathlib import Path

_getaddrinfo = socket.getaddrinfo
_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def install(net):
    asked = {}

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
        name = host.decode() if isinstance(host, bytes) else host
        answers = net["names"].get((name or "").rstrip(".").lower())
        if answers is None:
            if (name or "").rstrip(".").lower() != "localhost":
                flags |= socket.AI_NUMERICHOST
            return _getaddrinfo(host, port, family, type, proto, flags)
        at = asked[name] = asked.get(name, -1) + 1
        rows = []
        for address in answers[min(at, len(answers) - 1)]:
            rows += _getaddrinfo(address, port, 0, type, proto, socket.AI_NUMERICHOST)
        return [row for row in rows if family in (0, row[0])]

    def way(own, address):
        """Where a connect leads in truth; None where nothing may be sent at all."""
        if own.family not in (socket.AF_INET, socket.AF_INET6):
            return address
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        with Path(net["log"]).open("a") as log:
            log.write(f"{ip} {address[1]}\n")
        inner = getattr(ip, "ipv4_mapped", None) or ip
        if inner.is_loopback or inner.is_unspecified:
            return address
        if inner.is_global and str(inner) in net["public"]:
            here = "127.0.0.1" if own.family == socket.AF_INET else "::ffff:127.0.0.1"
            return (here, net["port"], *address[2:])
        return None

    def connect(self, address):
        target = way(self, address)
        if target is None:
            raise ConnectionRefusedError(111, "nothing leaves this test")
        return _connect(self, target)

    def connect_ex(self, address):
        target = way(self, address)
        return 111 if target is None else _connect_ex(self, target)

    socket.getaddrinfo = getaddrinfo
    socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
    if net["guard_off"]:
        import stages.crawl.guard.addresses as addresses

        addresses.refusal = lambda address: None


def remove():
    socket.getaddrinfo = _getaddrinfo
    socket.socket.connect, socket.socket.connect_ex = _connect, _connect_ex


if "FAKE_NET" in os.environ:
    install(json.loads(Path(os.environ["FAKE_NET"]).read_text()))
