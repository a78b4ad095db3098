"""Parsing in worker processes: hostile pages cost one reject each, and the rest come in order."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from hostile_worker import CPU_S

from stages.crawl import workers
from stages.crawl.page import UnreadableError
from stages.crawl.pages import Body
from stages.crawl.web import Web

HERE = Path(__file__).resolve().parent
SOURCE = Web.model_validate(
    yaml.safe_load((HERE.parent / "conf/source/web.yaml").read_text()) | {"url": "http://x.org/"}
)
LIMITS = workers.Limits(cpu_s=CPU_S, memory_mb=512)


@pytest.fixture
def hostile(monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, str(HERE / "hostile_worker.py")])
    monkeypatch.setattr(workers, "_idle", [])
    yield
    workers._end_idle()


def parsed(*pages, **options):
    tasks = [(f"http://x.org/{at}", Body("text/html", page)) for at, page in enumerate(pages)]
    outcomes = list(workers.parse(SOURCE, tasks, LIMITS, **options))
    assert [address for address, _ in outcomes] == [address for address, _ in tasks]
    return [
        (found.reason, found.detail) if isinstance(found, UnreadableError) else found[0].text
        for _, found in outcomes
    ]


HOSTILE = {
    b"spin": ("parse_timeout", ""),
    b"spin briefly": ("parse_timeout", ""),
    b"regex": ("parse_timeout", ""),
    b"allocate": ("parse_memory", ""),
    b"reserve": ("parse_memory", ""),
    b"allocate slowly": ("parse_memory", ""),
    b"kill": ("parse_memory", ""),  # as the kernel does where memory is short
    b"segv": ("parse_crashed", "SIGSEGV"),
    b"abort": ("parse_crashed", "SIGABRT"),
    b"exit": ("parse_crashed", ""),
    b"recurse": ("parse_crashed", "RecursionError: maximum recursion depth exceeded"),
    b"raise": ("parse_crashed", "IndexError: the library's own fault"),
    b"flood": ("parse_memory", ""),
    b"connect": ("parse_crashed", "PermissionError: socket.getaddrinfo while parsing"),
    b"unreadable": ("not_html", "said so"),
}


FEW = (b"spin", b"allocate", b"segv", b"unreadable")


@pytest.mark.parametrize("kinds", [FEW, pytest.param(tuple(HOSTILE), marks=pytest.mark.slow)])
def test_a_hostile_page_costs_itself_and_no_other(hostile, kinds, monkeypatch):
    monkeypatch.setattr(workers, "MAX_ANSWER_BYTES", 2**20)
    pages = []
    for at, page in enumerate(kinds):
        pages += [b"before %d" % at, page]
    pages += [b"after"] * 40
    found = parsed(*pages, num_workers=2)
    for at, page in enumerate(kinds):
        assert found[2 * at] == f"before {at}"
        assert found[2 * at + 1] == HOSTILE[page], page
    assert found[2 * len(kinds) :] == ["after"] * 40


@pytest.mark.parametrize(
    ("defect", "page"),
    [
        ("unlimited", b"reserve"),
        pytest.param("unlimited", b"spin briefly", marks=pytest.mark.slow),
        pytest.param("outgoing", b"connect", marks=pytest.mark.slow),
    ],
)
def test_the_suite_sees_a_worker_without_its_limits(hostile, defect, page, monkeypatch):
    test_a_hostile_page_costs_itself_and_no_other(hostile, [page], monkeypatch)
    workers._end_idle()
    monkeypatch.setattr(workers, "COMMAND", [*workers.COMMAND, defect])
    with pytest.raises(AssertionError, match=page.decode()):
        test_a_hostile_page_costs_itself_and_no_other(hostile, [page], monkeypatch)


def test_a_page_that_waits_is_ended_by_the_clock(hostile, monkeypatch):
    monkeypatch.setattr(workers, "WALL_FACTOR", 1)
    assert parsed(b"sleep", b"after") == [("parse_timeout", ""), "after"]


def test_what_a_library_prints_is_no_answer(hostile):
    assert parsed(b"print", b"after") == ["print", "after"]


def test_a_large_page_and_a_large_answer_pass(hostile):
    text = b"long " * 2**20  # more than a pipe holds, on both ways
    assert parsed(*[text] * 4, num_workers=2) == [text.decode()] * 4


def test_all_cores_work_and_stay_for_the_next_source(hostile):
    assert len(set(parsed(*[b"one"] * 400, num_workers=2))) == 1
    held = {worker._process.pid for worker in workers._idle}
    assert len(held) == 2
    parsed(b"two", num_workers=2)
    assert {worker._process.pid for worker in workers._idle} == held


def test_a_worker_that_cannot_start_is_our_fault_and_no_page_s(hostile, monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", "raise SystemExit('no')"])
    with pytest.raises(RuntimeError, match="does not start: no"):
        parsed(b"one")


def test_a_caller_who_has_had_enough_leaves_no_worker_behind(hostile):
    before = set(psutil.Process().children())
    pages = [*[b"one"] * 16, *[b"spin"] * 200]
    tasks = ((f"http://x.org/{at}", Body("", page)) for at, page in enumerate(pages))
    outcomes = workers.parse(SOURCE, tasks, workers.Limits(1, 512), num_workers=2)
    next(outcomes)
    outcomes.close()
    workers._end_idle()
    assert set(psutil.Process().children()) <= before


def test_few_pages_are_read_ahead(hostile):
    read = 0

    def tasks():
        nonlocal read
        for at in range(2000):
            read = at
            yield f"http://x.org/{at}", Body("", b"one")

    outcomes = workers.parse(SOURCE, tasks(), LIMITS, num_workers=2)
    next(outcomes)
    assert read <= 7 * workers.BATCH_PAGES
    outcomes.close()


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:]\n"
        "from stages.crawl import workers; from stages.crawl.pages import Body\n"
        "from test_crawl_workers import SOURCE\n"
        "list(workers.parse(SOURCE, [('http://x.org/', Body('', b'x'))], workers.Limits(1, 512)))\n"
        "print(workers._idle[0]._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(HERE.parent), str(HERE)],
        capture_output=True,
        env=os.environ,
    )
    worker = int(done.stdout)
    if psutil.pid_exists(worker):
        psutil.wait_procs([psutil.Process(worker)], timeout=10)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"


def test_a_real_page_comes_through_a_real_worker():
    html = b"<main><h1 id=a>Title</h1><p>\xe9t\xe9</p></main>"
    body = Body("text/html; charset=latin-1", html)
    ((address, pages),) = workers.parse(SOURCE, [("http://x.org/", body)], LIMITS)
    assert address == "http://x.org/"
    assert pages[0].text == "# Title\n\nété"
    assert pages[0].headings[0].anchor == "a"
