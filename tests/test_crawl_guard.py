"""No request leaves for an address inside, whatever spells it, by every way out of a crawl."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sites import MISSING, crawled, link, ok, page, responding, sections

from stages.core.errors import PipelineError
from stages.crawl import guard, web
from stages.crawl.files import remote
from stages.crawl.guard import addresses
from stages.crawl.pages import Pages
from stages.crawl.shells import chromium
from stages.crawl.site import Filter

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1:248:1893:25c8:1946"

# --- vectors: PORT is the canary's --------------------------------------------------------------

HERE = [
    *("127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "127.0.0.1.", "127.8.8.8"),
    *("2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "017700000001"),
    *("0177.0x0.0.1", "0", "0.0.0.0", "0x0", "localhost", "LOCALHOST", "localhost."),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::ffff:0:0]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
    *("[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::1]"),
    *("[2001:0:7f00:1::80ff:fffe]", "[fe80::5efe:7f00:1]", "[::ffff:0:7f00:1]"),
    *("user@127.0.0.1", f"{PUBLIC}@127.0.0.1", f"{PUBLIC}:80@127.0.0.1", "a:b@localhost"),
    *("１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "loc𝒶lhost"),
    *("loop.example", "six.example", "mapped.example", "nat64.example", "zero.example"),
    *("both.example", "both-first.example", "LOOP.example.", "deep.loop.example"),
]
"""Hosts that are this machine in one spelling or another."""
INSIDE = [
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]"),
    *("[fd00:ec2::254]", "[fd20:ce::254]", "169.254.170.2", "100.100.100.200", "168.63.129.16"),
    *("192.0.0.192", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "[fc00::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]"),
    *("[2001:db8::1]", "[100::1]", "[3fff::1]", "[5f00::1]", "[2002:a00:1::]", "[64:ff9b::a00:1]"),
    *("meta.example", "private.example", "carrier.example", "ula.example"),
]
"""Hosts that are inside, and not this machine: that nothing is sent there is seen in the log."""
PAYLOAD_SCHEMES = [
    *("file:///etc/passwd", "ftp://127.0.0.1:PORT/", "gopher://127.0.0.1:PORT/_x"),
    *("data:text/html,<a href=http://127.0.0.1:PORT/>", "javascript:fetch('//127.0.0.1:PORT/')"),
    *("dict://127.0.0.1:PORT/", "ws://127.0.0.1:PORT/", "view-source:http://127.0.0.1:PORT/"),
    *("http:/\\127.0.0.1:PORT/", "http:\\\\127.0.0.1:PORT\\", "///127.0.0.1:PORT/"),
    *("//127.0.0.1:PORT/", "http://127.0.0.1:PORT\\@site.example/", "http:127.0.0.1:PORT/"),
    *("http://site.example@127.0.0.1:PORT/", "http://127.0.0.1:PORT#@site.example/"),
    *("http://127.0.0.1:PORT?@site.example/", "http://site.example%00@127.0.0.1:PORT/"),
    *("http://127.0.0.1%09:PORT/", "http://\t127.0.0.1:PORT/", "HTTP://127.0.0.1:PORT/"),
]
NAMES = {
    "site.example": [[PUBLIC]],
    "six-site.example": [[PUBLIC_6]],
    "loop.example": [["127.0.0.1"]],
    "deep.loop.example": [["127.0.0.1"]],
    "six.example": [["::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "nat64.example": [["64:ff9b::7f00:1"]],
    "zero.example": [["0.0.0.0"]],
    "both.example": [[PUBLIC, "127.0.0.1"]],
    "both-first.example": [["127.0.0.1", PUBLIC]],
    "meta.example": [["169.254.169.254"]],
    "private.example": [["10.1.2.3"]],
    "carrier.example": [["100.64.1.2"]],
    "ula.example": [["fd00::5"]],
}
REBINDING = {
    f"rebind-{at}.example": answers
    for at, answers in enumerate(
        [
            [[PUBLIC], ["127.0.0.1"]],
            [[PUBLIC], ["::1"]],
            [[PUBLIC], ["0.0.0.0"]],
            [[PUBLIC], ["169.254.169.254"]],
            [[PUBLIC], ["10.0.0.1"]],
            [[PUBLIC], ["::ffff:127.0.0.1"]],
            [[PUBLIC], [PUBLIC], ["127.0.0.1"]],
            [[PUBLIC], [PUBLIC], [PUBLIC], ["127.0.0.1"]],
            [[PUBLIC], [PUBLIC, "127.0.0.1"]],
            [[PUBLIC], ["127.0.0.1", PUBLIC]],
            [[PUBLIC, "127.0.0.1"], ["127.0.0.1"]],
            [[PUBLIC_6], ["::1"]],
            [[PUBLIC_6, PUBLIC], ["::1", "127.0.0.1"]],
            [[PUBLIC], ["64:ff9b::7f00:1"]],
            [[PUBLIC], ["127.0.0.1"], [PUBLIC], ["127.0.0.1"]],
            [["127.0.0.1"], [PUBLIC], ["127.0.0.1"]],
            [[PUBLIC], ["2002:7f00:1::1"]],
            [[PUBLIC], ["127.8.8.8"]],
        ]
    )
}
VECTORS = len(HERE) + len(INSIDE) + len(PAYLOAD_SCHEMES)


def test_there_are_as_many_vectors_as_promised():
    assert VECTORS >= 60
    assert len(REBINDING) >= 15


# --- the canary, and a network of names ---------------------------------------------------------


class Net:
    """A network in which only one server can be reached, and a port that nobody may touch."""

    def __init__(self, folder, port, guard_off):
        self.touched = 0
        self.log = folder / "connects.log"
        self.file = folder / "net.json"
        self.log.touch()
        self.settings = {
            "names": NAMES | REBINDING,
            "public": [PUBLIC, PUBLIC_6],
            "port": port,
            "log": str(self.log),
            "guard_off": guard_off,
        }
        self.file.write_text(json.dumps(self.settings))
        self._sockets = [socket.create_server(("0.0.0.0", 0))]
        self.port = self._sockets[0].getsockname()[1]
        six = ("::", self.port)
        self._sockets.append(socket.create_server(six, family=socket.AF_INET6))
        for listening in self._sockets:
            threading.Thread(target=self._watch, args=(listening,), daemon=True).start()

    def _watch(self, listening):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self.touched += 1
                connection.close()

    def close(self):
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def urls(self, hosts=None):
        """Every vector as an address, at the canary's port."""
        vectors = [f"http://{host}:{self.port}/" for host in hosts or [*HERE, *INSIDE, *REBINDING]]
        if hosts is None:
            vectors += [text.replace("PORT", str(self.port)) for text in PAYLOAD_SCHEMES]
        return vectors

    def violations(self):
        """What was touched, and what was tried without getting there."""
        found = ["the canary"] * self.touched
        for line in self.log.read_text().splitlines():
            address, port = line.split()
            inner = getattr(ip_address(address), "ipv4_mapped", None) or ip_address(address)
            inside = int(port) == self.port or not inner.is_loopback
            if inside and address not in (PUBLIC, PUBLIC_6):
                found.append(line)
        return found

    def reached(self):
        """Connections to the public site: a suite that sends nothing proves nothing."""
        return sum(
            line.split()[0] in (PUBLIC, PUBLIC_6)
            for line in self.log.read_text().split("\n")
            if line
        )


@contextlib.contextmanager
def network(folder, respond, guard_off=False):
    with responding(respond) as (origin, log):
        net = Net(folder, urlsplit(origin).port, guard_off)
        try:
            yield net, log
        finally:
            net.close()


@pytest.fixture
def fake():
    """The network for this process; the spiders' take it from FAKE_NET."""
    spec = importlib.util.spec_from_file_location(
        "fake_net", ROOT / "tests/fake_net/sitecustomize.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real = addresses.refusal
    yield module
    module.remove()
    addresses.refusal = real


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [*HERE, *INSIDE])
def test_no_spelling_of_an_address_inside_resolves(host, fake, tmp_path):
    with network(tmp_path, lambda _: lambda __: MISSING) as (net, _):
        fake.install(net.settings)
        name = urlsplit(f"http://{host}:1/").hostname
        with pytest.raises((guard.ForbiddenError, OSError)):
            guard.resolve(name, 80, guard.Allowed())


@given(st.ip_addresses())
def test_what_is_let_out_is_public_by_python_s_word_too(address):
    if guard.refusal(address) is None:
        inner = address
        if address.version == 6 and address in addresses._NAT64:
            inner = ip_address(int(address) & 0xFFFFFFFF)
        assert inner.is_global and not inner.is_multicast


@pytest.mark.parametrize("host", [PUBLIC, PUBLIC_6, "1.1.1.1", "64:ff9b::5db8:d822"])
def test_public_addresses_are_let_out(host):
    assert guard.refusal(ip_address(host)) is None


def test_a_host_that_the_source_allows_is_let_out_at_its_port_alone(fake, tmp_path):
    with network(tmp_path, lambda _: lambda __: MISSING) as (net, _):
        fake.install(net.settings)
        allowed = guard.Allowed.of(["Private.example.:8080", "127.0.0.1", "[fd00::7]:80"])
        assert guard.resolve("private.example", 8080, allowed)
        assert guard.resolve("127.0.0.1", 1, allowed)
        assert guard.resolve("0x7f.1", 1, guard.Allowed.of(["0x7f.1"]))
        for host, port in [("private.example", 80), ("loop.example", 1), ("carrier.example", 8080)]:
            with pytest.raises(guard.ForbiddenError, match=r"name it in source\.allow_hosts"):
                guard.resolve(host, port, allowed)


def test_a_served_folder_asks_for_nothing_else_and_looks_up_no_other_name(fake, tmp_path):
    with network(tmp_path, lambda _: public([])) as (net, _):
        fake.install(net.settings)
        allowed = guard.Allowed.of(["127.0.0.1:8080"], only=True)
        assert guard.resolve("127.0.0.1", 8080, allowed)
        for host, port in [
            ("site.example", 80),
            (PUBLIC, 443),
            ("127.0.0.1", 80),
            ("x.invalid", 1),
        ]:
            with pytest.raises(guard.ForbiddenError, match="a served folder asks nobody else"):
                guard.resolve(host, port, allowed)
        with guard.proxy(allowed) as proxy:
            refused = spoken(proxy, b"GET http://site.example/ HTTP/1.0\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 403 ")
        assert net.reached() == 0


def test_a_name_that_is_allowed_never_leads_to_metadata(fake, tmp_path):
    with network(tmp_path, lambda _: lambda __: MISSING) as (net, _):
        fake.install(net.settings)
        with pytest.raises(guard.ForbiddenError, match="a cloud's metadata"):
            guard.resolve("meta.example", 80, guard.Allowed.of(["meta.example"]))
        assert guard.resolve("169.254.169.254", 80, guard.Allowed.of(["169.254.169.254"]))


@pytest.mark.parametrize("entry", ["", "http://x", "a b", "x:0", "x:y", "[::1", "x/y", "u@x"])
def test_an_entry_that_is_no_host_is_told(entry):
    with pytest.raises(PipelineError, match=r"source\.allow_hosts\.0: .*expected a host such as"):
        sections(allow_hosts=[entry])


# --- Scrapy -------------------------------------------------------------------------------------


def site(net, vectors):
    """A public site that leads to every vector by every sign that a crawler follows."""
    where = {f"/to/{at}": url for at, url in enumerate(vectors)}

    def answer(asked):
        path = asked.path
        if path in where:
            return 302, {"Location": quote(where[path], safe=":/?#[]@%\\")}, ""
        if path == "/robots.txt":
            lines = [f"Sitemap: {url}" for url in vectors]
            return ok("User-agent: *\nAllow: /\n" + "\n".join(lines), "text/plain")
        if path == "/sitemap.xml":
            urls = "".join(f"<url><loc>{_escaped(url)}</loc></url>" for url in vectors)
            return ok(f"<urlset>{urls}</urlset>", "application/xml", Connection="close")
        if path == "/llms.txt":
            return ok("".join(f"- [x]({url})\n" for url in vectors), "text/plain")
        if path == "/based":
            base = f'<base href="http://127.0.0.1:{net().port}/">'
            return ok(page("Based", link("inner", "/inner"), head=base), Connection="close")
        if path == "/":
            head = "".join(
                f'<link rel=canonical href="{_escaped(url)}"><meta http-equiv=refresh '
                f'content="0; url={_escaped(url)}"><link rel=alternate type="application/rss+xml" '
                f'href="{_escaped(url)}">'
                for url in vectors
            )
            frames = "".join(f'<iframe src="{_escaped(url)}"></iframe>' for url in vectors)
            again = [f"http://{name}/again/{at}" for name in REBINDING for at in range(4)]
            links = link(*map(_escaped, vectors), *where, "/based", *again)
            return ok(page("Start", links, frames, head=head), Connection="close")
        return ok(page(f"Page {path}"), Connection="close")

    return answer


def _escaped(url):
    return url.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def crawl_everything(tmp_path, monkeypatch, guard_off=False):
    held = []
    with network(
        tmp_path, lambda _: lambda asked: site(lambda: held[0], held[0].urls())(asked), guard_off
    ) as (net, log):
        held.append(net)
        monkeypatch.setenv("FAKE_NET", str(net.file))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/fake_net"), str(ROOT)]))
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{net.port}")
        changes = {
            "url": "http://site.example/",
            "external": True,
            "allow_hosts": [],
            "lists": ["sitemap", "llms_txt", "feed"],
            "max_reject_rate": 1.0,
            "timeout_s": 5.0,
            "concurrent_requests": 16,
        }
        _, rejects = crawled(tmp_path / "out", **changes)
        redirects = {asked.path for asked in log if asked.path.startswith("/to/")}
        assert net.reached() > 20 and len(redirects) >= len(net.urls())
        return net.violations(), rejects


def test_no_link_redirect_list_or_frame_of_a_site_leads_scrapy_inside(tmp_path, monkeypatch):
    violations, rejects = crawl_everything(tmp_path, monkeypatch)
    assert violations == []
    assert sum("not_public" in f"{row.reason} {row.detail}" for row in rejects.values()) > 60


@pytest.mark.slow
def test_the_suite_sees_a_spider_without_a_guard(tmp_path, monkeypatch):
    violations, _ = crawl_everything(tmp_path, monkeypatch, guard_off=True)
    assert "the canary" in violations
    assert any(line.startswith("169.254.169.254 ") for line in violations)


def test_a_start_page_inside_is_told_with_its_remedy(tmp_path):
    inside = ["127.0.0.1:1"]  # another port does not help
    with pytest.raises(PipelineError, match=r"127\.0\.0\.1 \(this machine\): name it in source"):
        crawled(tmp_path / "out", url="http://127.0.0.1:9/", allow_hosts=inside)


# --- the proxy, and what goes through it --------------------------------------------------------


def public(held):
    """The public site for clients of the proxy: it leads to the vectors by redirects."""

    def answer(asked):
        path = urlsplit(asked.path).path
        if path.startswith("/to/"):
            where = held[0].urls()[int(path.split("/")[2])]
            return 302, {"Location": quote(where, safe=":/?#[]@%\\"), "Connection": "close"}, ""
        return ok("public", "text/plain", Connection="close")

    return answer


@contextlib.contextmanager
def proxied(folder, fake, guard_off=False):
    """A network, and the proxy of a source that allows nothing inside."""
    held = []
    with network(folder, lambda _: public(held), guard_off) as (net, _):
        held.append(net)
        fake.install(net.settings)
        try:
            with guard.proxy(guard.Allowed()) as proxy:
                yield net, proxy
        finally:
            fake.remove()


def spoken(proxy, request, until=b""):
    """What the proxy answers to these bytes: what comes first, or all up to some words."""
    said = b""
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port), timeout=30) as client:
        client.sendall(request)
        with contextlib.suppress(OSError):
            while (part := client.recv(4096)) and until not in (said := said + part):
                pass
    return said


def ask_for_everything(net, proxy):
    """Every vector as a request and as a tunnel; every name that moves, several times."""
    for url in net.urls():
        netloc = url.partition("://")[2].partition("/")[0]
        for head in (
            f"GET {url} HTTP/1.1\r\nHost: site.example\r\n\r\n",
            f"GET http://site.example/ HTTP/1.1\r\nHost: {netloc}\r\nConnection: close\r\n\r\n",
            f"CONNECT {netloc} HTTP/1.1\r\nHost: site.example\r\n\r\n",
        ):
            spoken(proxy, head.encode())
    for name in REBINDING:
        for _ in range(4):
            for port in (80, net.port):
                spoken(proxy, f"GET http://{name}:{port}/ HTTP/1.0\r\n\r\n".encode())


def test_the_proxy_lets_nothing_inside(tmp_path, fake):
    with proxied(tmp_path, fake) as (net, proxy):
        answer = spoken(proxy, b"GET http://site.example/ HTTP/1.0\r\n\r\n", until=b"public")
        assert answer.endswith(b"public")
        refused = spoken(proxy, b"GET http://private.example/ HTTP/1.0\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 403 ") and b"source.allow_hosts" in refused
        ask_for_everything(net, proxy)
        assert net.violations() == []
        assert net.reached() > VECTORS
        assert len(proxy.refused) > 60


def test_the_suite_sees_a_proxy_without_a_guard(tmp_path, fake):
    with proxied(tmp_path, fake, guard_off=True) as (net, proxy):
        ask_for_everything(net, proxy)
        assert net.violations().count("the canary") > 15


def test_a_request_after_the_first_goes_nowhere_else(tmp_path, fake):
    with proxied(tmp_path, fake) as (net, proxy):
        first = "GET http://site.example/ HTTP/1.1\r\nHost: site.example\r\n\r\n"
        second = f"GET http://127.0.0.1:{net.port}/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        spoken(proxy, (first + second).encode())
        spoken(proxy, (first.replace("GET", "POST") + second).encode())
        assert net.violations() == []


@pytest.mark.parametrize(
    "request_",
    [
        *(b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET ftp://x/ HTTP/1.1\r\n\r\n", b"x" * 2**17),
        *(b"CONNECT :80 HTTP/1.1\r\n\r\n", b"CONNECT a:b HTTP/1.1\r\n\r\n", b"GET x y\r\n\r\n"),
    ],
)
def test_what_is_no_request_to_a_proxy_ends_there(request_, tmp_path, fake):
    with proxied(tmp_path, fake) as (net, proxy):
        assert spoken(proxy, request_)[:12] in (b"", b"HTTP/1.1 400")
        assert net.reached() == 0


def test_a_connection_brings_no_more_than_it_may(tmp_path, fake):
    with network(tmp_path, lambda _: lambda __: ok("x" * 2**22)) as (net, _):
        fake.install(net.settings)
        with guard.proxy(guard.Allowed(), max_bytes=2**20) as proxy:
            port = urlsplit(proxy.url).port
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(b"GET http://site.example/ HTTP/1.0\r\n\r\n")
                size = 0
                with contextlib.suppress(ConnectionError):
                    while data := client.recv(2**16):
                        size += len(data)
        assert 2**19 < size < 2**21


# --- fsspec -------------------------------------------------------------------------------------


def open_everything(net, proxy, urls):
    for url in urls:
        options = guard.storage("http://site.example/", proxy)
        files = fsspec.filesystem("http", **options)
        with contextlib.suppress(Exception):  # whatever it is, it has not arrived
            files.cat_file(url)


def test_fsspec_goes_through_the_proxy_alone(tmp_path, fake, monkeypatch):
    with proxied(tmp_path, fake) as (net, proxy):
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{net.port}")
        files = fsspec.filesystem("http", **guard.storage("http://site.example/", proxy))
        assert files.cat_file("http://site.example/") == b"public"
        redirects = [f"http://site.example/to/{at}" for at in range(0, VECTORS, 3)]
        moving = [f"http://{name}/{at}" for name in REBINDING for at in range(3)]
        open_everything(net, proxy, [*net.urls()[::2], *redirects, *moving])
        assert net.violations() == []
        assert net.reached() > 20


def list_everything(folder, urls):
    """As the source of kind `files` does; how many were refused."""
    cfg, _ = sections(obey_robots=False, delay_s=0.0, timeout_s=5.0)
    refused = 0
    with Pages(folder / "listed.sqlite") as pages:
        crawl = pages.begin("files", "s")
        for url in urls:
            try:
                with remote.opened(cfg, url, [], Filter.of([], []), crawl, bool) as (found, _):
                    refused += any(row.reason or not row.open(1) for row in found)
            except (PipelineError, OSError):
                refused += 1
    return refused


def test_files_at_an_address_are_listed_through_the_proxy_alone(tmp_path, fake):
    with proxied(tmp_path, fake) as (net, _):
        redirects = [f"http://site.example/to/{at}" for at in range(0, VECTORS, 7)]
        urls = [*net.urls(HERE)[::2], *net.urls(list(REBINDING))[::2], *redirects]
        assert list_everything(tmp_path, urls) > 40  # a name that moves may be public in time
        assert net.violations() == []
        assert net.reached() >= len(redirects)


def test_the_suite_sees_an_fsspec_without_the_proxy(tmp_path, fake, monkeypatch):
    storage = guard.storage

    def heedless(*of):
        return {name: value for name, value in storage(*of).items() if name != "proxy"}

    monkeypatch.setattr(guard, "storage", heedless)
    with proxied(tmp_path, fake) as (net, proxy):
        list_everything(tmp_path, net.urls(["127.0.0.1", "loop.example", "10.0.0.1"]))
        assert "the canary" in net.violations()
        assert any(line.startswith("10.0.0.1 ") for line in net.violations())
    with proxied(tmp_path, fake) as (net, proxy):
        open_everything(net, proxy, net.urls(["127.0.0.1", "rebind-1.example"]))
        assert "the canary" in net.violations()


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "sftp://x/y", "simplecache::http://x/y", "zip://a::http://x/y", "github://o:r@/", "memory://x",
     "file:///etc/passwd", "dask://x", "http://", "reference://x", "smb://x/y", "gs://x/y", "http:///x"],
)  # fmt: skip
def test_storage_that_is_not_known_to_obey_is_refused(url):
    with pytest.raises(PipelineError, match=r"source\.path: .*expected"):
        guard.storage(url, guard.Proxy("http://127.0.0.1:1"))


def test_storage_of_s3_is_given_the_proxy_and_asks_no_metadata(monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    options = guard.storage("s3://bucket/key", guard.Proxy("http://127.0.0.1:1"))
    assert set(options["config_kwargs"]["proxies"].values()) == {"http://127.0.0.1:1"}
    assert os.environ["AWS_EC2_METADATA_DISABLED"] == "true"


# --- git ----------------------------------------------------------------------------------------

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git on the PATH")


def called(how, *arguments):
    return subprocess.run(
        ["git", *how.options, *arguments], env=how.environment, capture_output=True, timeout=60
    )


def clone_everything(net, proxy, folder, urls):
    how = guard.git(proxy)
    for at, url in enumerate(urls):
        called(how, "clone", "--quiet", "--recurse-submodules", url, str(folder / str(at)))


@needs_git
def test_git_goes_through_the_proxy_alone(tmp_path, fake, monkeypatch):
    with proxied(tmp_path, fake) as (net, proxy):
        # What a user has set up is not asked: it could lead around the proxy.
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.proxy")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "")
        mark = tmp_path / "ran"
        urls = [
            *net.urls(["127.0.0.1", "localhost", "[::1]", "0x7f.1", "loop.example", "10.0.0.1"]),
            *(f"http://site.example/to/{at}" for at in (0, 6, 19, 40)),
            *(f"http://{name}/x.git" for name in list(REBINDING)[:4]),
            *(
                f"ext::sh -c touch% {mark}",
                f"file://{tmp_path}",
                str(tmp_path),
                "ssh://127.0.0.1/x",
            ),
            *(f"git://127.0.0.1:{net.port}/x", f"127.0.0.1:{net.port}/x", "--upload-pack=touch"),
        ]
        clone_everything(net, proxy, tmp_path / "clones", urls)
        assert net.violations() == []
        assert net.reached() >= 4
        assert not mark.exists()


@needs_git
def test_the_suite_sees_git_without_the_proxy(tmp_path, fake):
    with proxied(tmp_path, fake) as (net, proxy):
        how = guard.git(proxy)
        direct = [word for word in how.options if not word.startswith("http.proxy=")]
        options = [word for at, word in enumerate(direct) if direct[at : at + 2] != ["-c", "-c"]]
        called(guard.Git(options, how.environment), "ls-remote", f"http://127.0.0.1:{net.port}/x")
        assert "the canary" in net.violations()


@needs_git
def test_a_repository_on_this_machine_has_no_way_out(tmp_path, fake):
    with proxied(tmp_path, fake) as (net, _):
        how = guard.git(None)
        work = tmp_path / "work"
        for arguments in (
            ["init", "-q", str(work)],
            [
                *("-C", str(work), "-c", "user.name=x", "-c", "user.email=x@x.org"),
                *("commit", "-q", "--allow-empty", "-m", "x"),
            ],
        ):
            assert called(how, *arguments).returncode == 0
        (work / ".gitmodules").write_text(
            f'[submodule "x"]\n path = x\n url = http://127.0.0.1:{net.port}/x\n'
        )
        done = called(how, "clone", "-q", "--recurse-submodules", str(work), str(tmp_path / "to"))
        assert done.returncode == 0
        assert called(how, "ls-remote", f"http://127.0.0.1:{net.port}/x").returncode != 0
        assert net.violations() == []


# --- Chromium -----------------------------------------------------------------------------------


def everything_a_page_can_ask_for(net):
    urls = json.dumps([*net.urls(HERE), *net.urls(INSIDE), *net.urls(list(REBINDING))])
    script = """
    const add = (tag, set) => { const node = document.createElement(tag); Object.assign(node, set);
      document.body.append(node); };
    const quiet = work => { try { const done = work(); done && done.catch && done.catch(() => 0); }
      catch (error) {} };
    const all = @ALL@;
    for (const url of all) {
      quiet(() => fetch(url, {mode: 'no-cors'}));
      quiet(() => fetch(url, {mode: 'no-cors', method: 'POST', body: 'x', keepalive: true}));
      quiet(() => { const ask = new XMLHttpRequest(); ask.open('GET', url); ask.send(); });
      quiet(() => new WebSocket(url.replace('http', 'ws')));
      quiet(() => new EventSource(url));
      quiet(() => navigator.sendBeacon(url, 'x'));
      quiet(() => import(url));
      quiet(() => new Worker(URL.createObjectURL(new Blob([`importScripts('${url}')`]))));
      quiet(() => new WebTransport(url.replace('http:', 'https:')));
      quiet(() => new Image().src = url);
      quiet(() => navigator.serviceWorker.register(url));
      for (const rel of ['stylesheet', 'prefetch', 'preload', 'preconnect', 'dns-prefetch',
          'modulepreload', 'manifest', 'icon', 'prerender'])
        quiet(() => add('link', {rel, href: url, as: 'script'}));
      quiet(() => add('iframe', {src: url}));
      quiet(() => add('script', {src: url}));
      quiet(() => add('object', {data: url}));
      quiet(() => add('embed', {src: url}));
      quiet(() => add('video', {src: url, autoplay: true}));
      quiet(() => add('a', {href: url, ping: url, textContent: 'x'}));
    }
    quiet(() => { for (const name of ['RTCPeerConnection', 'webkitRTCPeerConnection'].filter(
        name => self[name])) {
      const call = new self[name]({iceServers: [{urls: 'stun:127.0.0.1:@PORT@'},
        {urls: 'turn:127.0.0.1:@PORT@?transport=tcp', username: 'x', credential: 'x'}]});
      call.createDataChannel('x'); call.createOffer().then(o => call.setLocalDescription(o)); } });
    quiet(() => window.open(all[0]));
    const frame = document.createElement('iframe');
    frame.srcdoc = `<meta http-equiv=refresh content="0; url=${all[0]}"><form id=f method=post
      action="${all[1]}"></form><script>f.submit()</scr` + 'ipt>';
    document.body.append(frame);
    document.getElementById('root').textContent = 'Asked for all of it. '.repeat(20);
    setTimeout(() => { location = all[0]; }, 2000);
    """
    return script.replace("@ALL@", urls).replace("@PORT@", str(net.port))


def draw_everything(tmp_path, monkeypatch, guard_off=False):
    held = []

    def answer(asked):
        if asked.path == "/ask.js":
            return ok(everything_a_page_can_ask_for(held[0]), "text/javascript")
        if asked.path == "/":
            return ok('<div id="root"></div><script src="/ask.js"></script>')
        return MISSING

    with network(tmp_path, lambda _: answer, guard_off) as (net, log):
        held.append(net)
        monkeypatch.setenv("FAKE_NET", str(net.file))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/fake_net"), str(ROOT)]))
        with contextlib.suppress(PipelineError):  # the page that leads away is none
            crawled(
                tmp_path / "out",
                url="http://site.example/",
                allow_hosts=[],
                render="auto",
                obey_robots=False,
                timeout_s=20.0,
            )
        assert "/ask.js" in {asked.path for asked in log}
        return net.violations()


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH")
@pytest.mark.parametrize("alone", [True, False], ids=["guarded", "planted"])
def test_a_page_of_a_served_folder_asks_no_public_host(alone, tmp_path, monkeypatch):
    """Where only addresses inside are refused, the suite sees it."""
    folder = tmp_path / "site"
    folder.mkdir()
    script = (
        "fetch('http://site.example/x', {mode: 'no-cors'}).catch(() => 0).then(() => {"
        "document.getElementById('root').textContent = 'Asked for it. '.repeat(20); })"
    )
    (folder / "ask.js").write_text(script)
    (folder / "index.html").write_text('<div id="root"></div><script src="/ask.js"></script>')
    if not alone:
        rows = web._rows
        monkeypatch.setattr(web, "_rows", lambda order: rows(order | {"local": False}))
    with network(tmp_path, lambda _: lambda __: ok("x", "text/plain")) as (net, _):
        monkeypatch.setenv("FAKE_NET", str(net.file))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/fake_net"), str(ROOT)]))
        documents, _ = crawled(
            tmp_path / "out",
            serve_dir=str(folder),
            public_url="http://docs.example/",
            render="auto",
            timeout_s=20.0,
        )
        assert "Asked for it." in documents["http://docs.example/"].text
        assert net.reached() == (0 if alone else 1)


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH")
def test_nothing_that_a_page_asks_for_in_a_browser_leads_inside(tmp_path, monkeypatch):
    assert draw_everything(tmp_path, monkeypatch) == []


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH")
def test_the_suite_sees_a_browser_without_a_guard(tmp_path, monkeypatch):
    assert "the canary" in draw_everything(tmp_path, monkeypatch, guard_off=True)
