"""A certificate that does not hold is refused by every way out of a crawl, and nothing is sent."""

import contextlib
import datetime
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sites import MISSING, link, ok, page, refreshed, responding, sections, snapshot_beside

from stages.core.errors import PipelineError
from stages.crawl import guard, snapshot
from stages.crawl.code.repository import Repository
from stages.crawl.shells import chromium

ROOT = Path(__file__).resolve().parent.parent
BAD = ("self_signed", "wrong_host", "expired")
DAY = datetime.timedelta(days=1)

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git on the PATH")
needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH")


# --- certificates -------------------------------------------------------------------------------


def certified(folder, name, host="127.0.0.1", issuer=None, until=DAY, authority=False):
    """A certificate and its key, signed by the issuer or by itself; both, to sign others with."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer, signing = issuer or (None, key)
    named = x509.DNSName(host) if host[0].isalpha() else x509.IPAddress(ip_address(host))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 9 * DAY)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").write_bytes(public + (b"" if authority else secret))
    return made, key


@contextlib.contextmanager
def server(chain, folder):
    """The files of a folder over TLS; the address, and what was asked for."""
    log = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            log.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            pass  # whoever asks has hung up

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with Server(("127.0.0.1", 0), partial(Handler, directory=folder)) as serving:
        # Not in the thread that accepts: a client that hangs up would end it.
        serving.socket = context.wrap_socket(
            serving.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"https://127.0.0.1:{serving.server_port}", log
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture
def https(tmp_path, monkeypatch):
    """Servers by how sound their certificate is, whose authority is trusted: address and log."""
    certificates, files = tmp_path / "certificates", tmp_path / "files"
    certificates.mkdir()
    (files / "in").mkdir(parents=True)
    (files / "in/a.md").write_text("# A\n")
    (files / "index.html").write_text(page("Secure"))
    (files / "x.js").write_text("document.getElementById('root').textContent += ' drawn '\n")
    authority = certified(certificates, "authority", authority=True, until=9 * DAY)
    certified(certificates, "good", issuer=authority)
    certified(certificates, "self_signed")
    certified(certificates, "wrong_host", "elsewhere.example", issuer=authority)
    certified(certificates, "expired", issuer=authority, until=-DAY)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "authority.pem"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(server(certificates / f"{name}.pem", files))
            for name in ("good", *BAD)
        }


def reached(https):
    """By whom something was heard."""
    return [name for name, (_, log) in https.items() if log]


# --- Scrapy -------------------------------------------------------------------------------------

UNVERIFIED = """
import stages.crawl.guard.reactor as guard
settings = guard.settings
guard.settings = lambda *of: {**settings(*of), "DOWNLOAD_VERIFY_CERTIFICATES": False}
"""


def crawl_all(https, tmp_path):
    """Why each server's page was left out."""
    links = link(*(f"{origin}/" for origin, _ in https.values()))
    answers = {"/": ok(page("Start", links))}
    with responding(lambda _: lambda asked: answers.get(asked.path, MISSING)) as (start, _):
        refreshed(tmp_path / "out", url=f"{start}/", external=True, timeout_s=20.0, retry_s=0.0)
    [held] = snapshot.read(snapshot_beside(tmp_path / "out"))["web"]
    return {name: held.left_out.get(f"{origin}/") for name, (origin, _) in https.items()}


def test_scrapy_refuses_a_certificate_that_does_not_hold(https, tmp_path):
    left_out = crawl_all(https, tmp_path)
    assert left_out.pop("good") is None
    assert reached(https) == ["good"]
    assert [reason for reason, _ in left_out.values()] == ["external"] * 3, left_out
    assert all("unreachable, linked" in said for _, said in left_out.values()), left_out


def test_a_start_page_whose_certificate_does_not_hold_is_one_line(https, tmp_path):
    with pytest.raises(PipelineError, match=r"^source\.url: .*(?i:certificate)") as caught:
        refreshed(tmp_path / "out", url=f"{https['expired'][0]}/", retry_s=0.0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_suite_sees_a_spider_that_verifies_nothing(https, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(UNVERIFIED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert set(crawl_all(https, tmp_path).values()) == {None}
    assert reached(https) == list(https)


# --- fsspec -------------------------------------------------------------------------------------

# aiohttp reads what is trusted when it is imported, so that each is a process of its own.
FILES = """
import json, sys
from pathlib import Path
from stages.core.errors import PipelineError
from stages.crawl import guard
from stages.crawl.files import remote
from stages.crawl.pages import Pages
from stages.crawl.settings import Config
from stages.crawl.site import Filter
if sys.argv[1] == "unverified":
    storage = guard.storage
    guard.storage = lambda *of: {**storage(*of), "ssl": False}
said = []
cfg, wanted = Config.model_validate(json.loads(sys.argv[2])), Filter.of([], [])
with Pages(Path("pages.sqlite")) as pages:
    crawl = pages.begin("files", "s")
    for origin in sys.argv[3:]:
        of = cfg, f"{origin}/in/", ["127.0.0.1"], wanted, crawl, bool
        try:
            with remote.opened(*of) as (found, _):
                said.append([row.open(99).decode() for row in found])
        except PipelineError as error:
            said.append(str(error))
print(json.dumps(said))
"""


def files_of_all(https, folder, how="verified"):
    origins = [origin for origin, _ in https.values()]
    cfg, _ = sections(obey_robots=False, delay_s=0.0, timeout_s=20.0)
    command = [sys.executable, "-c", FILES, how, cfg.model_dump_json(), *origins]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(https, json.loads(done.stdout), strict=True))


def test_fsspec_refuses_a_certificate_that_does_not_hold(https, tmp_path):
    said = files_of_all(https, tmp_path)
    assert said.pop("good") == ["# A\n"]
    assert reached(https) == ["good"]
    for line in said.values():
        assert line.startswith("source.path: 'https://127.0.0.1:") and "\n" not in line
        assert "certificate" in line.lower()


def test_the_suite_sees_an_fsspec_that_verifies_nothing(https, tmp_path):
    assert list(files_of_all(https, tmp_path, "unverified").values()) == [["# A\n"]] * 4
    assert reached(https) == list(https)


# --- git ----------------------------------------------------------------------------------------


def fetch_all(https, tmp_path, monkeypatch, *options):
    """The commit that each server gave, or the error."""
    work, bare = tmp_path / "work", tmp_path / "files/x.git"
    identity = ("-c", "user.name=x", "-c", "user.email=x@x.org")
    for command in (
        ("init", "-q", "-b", "main", str(work)),
        ("-C", str(work), *identity, "commit", "-q", "--allow-empty", "-m", "x"),
        ("clone", "-q", "--bare", str(work), str(bare)),
        ("-C", str(bare), "update-server-info"),
    ):
        subprocess.run(["git", *command], check=True, timeout=60)
    called = guard.git

    def git(proxy):
        how = called(proxy)
        # Its trust is not the environment's, which it is not given.
        trust = ["-c", f"http.sslCAInfo={tmp_path / 'certificates/authority.pem'}"]
        return guard.Git([*how.options, *trust, *options], how.environment)

    monkeypatch.setattr(guard, "git", git)
    said = {}
    with guard.proxy(guard.Allowed.of(["127.0.0.1"])) as proxy:
        for name, (origin, _) in https.items():
            try:
                said[name] = Repository(f"{origin}/x.git", proxy).fetch("main")
            except PipelineError as error:
                said[name] = str(error)
    return said


@needs_git
def test_git_refuses_a_certificate_that_does_not_hold(https, tmp_path, monkeypatch):
    said = fetch_all(https, tmp_path, monkeypatch)
    assert len(said.pop("good")) == 40
    assert reached(https) == ["good"]
    for line in said.values():
        assert line.startswith("source.path: 'https://127.0.0.1:") and "\n" not in line
        assert "certificate" in line


@pytest.mark.slow
@needs_git
def test_the_suite_sees_a_git_that_verifies_nothing(https, tmp_path, monkeypatch):
    said = fetch_all(https, tmp_path, monkeypatch, "-c", "http.sslVerify=false")
    assert len(set(said.values())) == 1 and len(said["good"]) == 40
    assert reached(https) == list(https)


# --- Chromium -----------------------------------------------------------------------------------


def draw_all(https, tmp_path):
    """A page whose every script is on one of the servers."""
    scripts = "".join(f'<script src="{origin}/x.js"></script>' for origin, _ in https.values())
    shell = f'<div id="root"></div><script src="/own.js"></script>{scripts}'
    own = "document.getElementById('root').textContent = 'Drawn here. '.repeat(40);"
    answers = {"/": ok(shell), "/own.js": ok(own, "text/javascript")}
    with responding(lambda _: lambda asked: answers.get(asked.path, MISSING)) as (start, log):
        refreshed(tmp_path / "out", url=f"{start}/", render="always", timeout_s=20.0)
    assert "/own.js" in {asked.path for asked in log}


@pytest.mark.slow
@needs_chromium
def test_the_browser_refuses_a_certificate_that_does_not_hold(https, tmp_path):
    draw_all(https, tmp_path)
    assert reached(https) == []  # it does not trust the test's authority either


@pytest.mark.slow
@needs_chromium
def test_the_suite_sees_a_browser_that_verifies_nothing(https, tmp_path, monkeypatch):
    heedless = tmp_path / "bin" / Path(chromium()).name
    heedless.parent.mkdir()
    heedless.write_text(f'#!/bin/sh\nexec {chromium()} --ignore-certificate-errors "$@"\n')
    heedless.chmod(0o755)
    monkeypatch.setenv("PATH", f"{heedless.parent}{os.pathsep}{os.environ['PATH']}")
    draw_all(https, tmp_path)
    assert reached(https) == list(https)
