"""A crawl is killed by its own site: at seeded requests and bytes, alone or with eight under way.

The server decides when: it ends the crawler with SIGKILL while it holds the answers of as many
requests as the trial asks for, or when a body is half sent. Its log says what is asked for again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from sites import PUBLIC, ROOT, Answer, Asked, Responder, link, ok, page, responding, sections

NUM_PAGES = 60
CONCURRENT = 10

REFRESH = """
import json, sys
from pathlib import Path
from stages import crawl
from stages.core import config
from stages.crawl import fetching
params, snapshot, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
cfg = config.load(params, "crawl", crawl.Config)
source = config.load(params, "source", crawl.Source)
fetching.refresh(cfg, source, [source], snapshot)
crawl.run(cfg, source, snapshot, out)
"""


# --- the site ----------------------------------------------------------------------------------


def body_of(number: int) -> str:
    """A page that leads to three others: some deep, some to an address that moved or is gone."""
    draw = random.Random(number)
    others = [f"{draw.randrange(NUM_PAGES)}.html" for _ in range(2)]
    onward = [f"{2 * number + 1}.html", f"{2 * number + 2}.html"]
    odd = [f"moved{number}.html", f"gone{number}.html"] if number % 7 == 0 else []
    return page(f"Page {number}", link(*others, *onward, *odd))


def answer_of(path: str) -> Answer:
    name = path.removeprefix("/docs/").removesuffix(".html")
    if path == "/docs/":
        return ok(body_of(0))
    if name.isdigit() and int(name) < NUM_PAGES:
        return ok(body_of(int(name)), ETag=f'"{name}"') if int(name) % 2 else ok(body_of(int(name)))
    if name.startswith("moved"):
        return 301, {"Location": f"/docs/{name.removeprefix('moved')}.html"}, ""
    return 404, {}, ""


# --- the server that kills ---------------------------------------------------------------------


@dataclass
class Kill:
    """When: at a request, with so many under way, or while a body is half sent; and whom."""

    at_request: int
    under_way: int
    in_body: bool
    victims: str
    """spider, parent or both."""


@dataclass
class Killer:
    """The trial's server side: what was asked in each life of the crawler, and the kills."""

    kills: list[Kill]
    asked: list[list[str]] = field(default_factory=lambda: [[]])
    process: "subprocess.Popen[bytes] | None" = None
    killed: int = 0
    under_way_then: list[int] = field(default_factory=list)
    _under_way: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def respond(self, asked: Asked) -> Answer:
        with self._changed:
            self.asked[-1].append(asked.path)
            self._under_way += 1
            self._changed.notify_all()
            life = len(self.asked) - 1
        if self._due(life) and not self.kills[life].in_body:
            self._hold(life)
        time.sleep(0.002)
        return answer_of(asked.path)

    def halfway(self, path: str) -> None:
        """Called when half of a body is sent."""
        life = len(self.asked) - 1
        if self._due(life) and self.kills[life].in_body:
            self._hold(life)

    def finished(self, path: str) -> None:
        """Called when an answer is sent, or when nobody takes it."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def next_life(self) -> None:
        """Begin a new list, once the spider has ended too, as the lock of a refresh has it."""
        with self._changed:
            self.asked.append([])

    def _due(self, life: int) -> bool:
        """Is this life of the crawler to be ended now?"""
        if self.killed > life or life >= len(self.kills):
            return False
        return len(self.asked[life]) >= self.kills[life].at_request

    def _hold(self, life: int) -> None:
        """Hold an answer until enough are under way, and kill then.

        A level may be narrower than that: the kill is for one of the next then.
        """
        kill = self.kills[life]
        with self._changed:
            enough = self._changed.wait_for(
                lambda: self._under_way >= kill.under_way or self.killed > life, timeout=0.4
            )
            if enough and self._due(life):
                self._end(kill)

    def _end(self, kill: Kill) -> None:
        assert self.process is not None
        self.under_way_then.append(self._under_way)
        self.killed += 1
        parent = psutil.Process(self.process.pid)
        spiders = parent.children()
        for victim in {"spider": spiders, "parent": [parent], "both": [parent, *spiders]}[
            kill.victims
        ]:
            victim.send_signal(signal.SIGKILL)
        psutil.wait_procs(spiders, timeout=20)


# --- a trial -----------------------------------------------------------------------------------


def trial(tmp_path: Path, kills: list[Kill], plant: str = "") -> list[str]:
    """Crawl once undisturbed and once with the kills; what is wrong with the second."""
    undisturbed, killer = Killer([]), Killer(kills)
    answering = [undisturbed]

    def respond(origin: str) -> Responder:
        return lambda asked: answering[0].respond(asked)

    # One address for both: it is part of what is compared.
    with responding(
        respond,
        halfway=lambda path: answering[0].halfway(path),
        finished=lambda path: answering[0].finished(path),
    ) as (origin, _):
        expected = lives(undisturbed, origin, tmp_path / "undisturbed", "")
        answering[0] = killer
        ended = lives(killer, origin, tmp_path / "killed", plant)
    assert killer.killed == len(kills), "the trial did not kill as often as it should"
    assert all(
        found >= kill.under_way for found, kill in zip(killer.under_way_then, kills, strict=True)
    )
    wrong = [f"{name} differs" for name in expected if expected[name] != ended.get(name)]
    for life in range(1, len(killer.asked)):
        before = [path for paths in killer.asked[:life] for path in paths]
        again = [path for path in killer.asked[life] if path in before]
        if len(again) > CONCURRENT:
            wrong.append(f"after kill {life}, {len(again)} addresses are asked for again: {again}")
        stale = set(again) - set(before[-2 * CONCURRENT :])
        if stale:
            wrong.append(f"after kill {life}, what was answered long ago is asked again: {stale}")
    return wrong


def lives(killer: Killer, origin: str, folder: Path, plant: str) -> dict[str, bytes]:
    """Start the crawler as often as it is killed; what it has written in the end."""
    folder.mkdir()
    snapshot = folder / "snapshot.json"
    snapshot.write_text("{}")
    paths = [str(ROOT)]
    if plant:
        (folder / "sitecustomize.py").write_text(plant)
        paths.insert(0, str(folder))
    cfg, source = sections(
        url=f"{origin}/docs/",
        public_url=PUBLIC,
        concurrent_requests=CONCURRENT,
        max_reject_rate=0.9,
    )
    params = json.dumps({"crawl": cfg.model_dump(), "source": source.model_dump()})
    environment = os.environ | {"DVC_ROOT": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    for _ in range(len(killer.kills) + 1):
        killed = killer.killed
        process = subprocess.Popen(
            [sys.executable, "-c", REFRESH, params, str(snapshot), str(folder / "out")],
            env=environment,
            stderr=subprocess.PIPE,
        )
        killer.process = process
        _, said = process.communicate()
        if killer.killed == killed:
            assert process.returncode == 0, said.decode()
            break
        killer.next_life()
    written = [snapshot, *sorted((folder / "out").iterdir())]
    return {file.name: file.read_bytes() for file in written}


def drawn(seed: int, num_kills: int) -> list[Kill]:
    """Kills at seeded requests; every second with eight and more under way."""
    draw = random.Random(seed)
    return [
        Kill(
            at_request=draw.randint(2, 14),
            under_way=8 if number % 2 == seed % 2 else 1,
            in_body=draw.random() < 0.4,
            victims=draw.choice(["spider", "parent", "both"]),
        )
        for number in range(num_kills)
    ]


def test_a_crawl_that_is_killed_thrice_goes_on_and_ends_byte_identical(tmp_path: Path) -> None:
    assert trial(tmp_path, drawn(1, 3)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_a_crawl_that_is_killed_anywhere_goes_on_and_ends_byte_identical(
    seed: int, tmp_path: Path
) -> None:
    assert trial(tmp_path, drawn(seed, 3)) == []


def test_half_of_the_kills_find_eight_requests_under_way() -> None:
    kills = [kill for seed in range(1, 10) for kill in drawn(seed, 3)]
    assert len(kills) >= 20
    assert 2 * sum(kill.under_way >= 8 for kill in kills) >= len(kills) - 1
    assert {kill.victims for kill in kills} == {"spider", "parent", "both"}
    assert 5 <= sum(kill.in_body for kill in kills) <= 20


# --- planted faults ----------------------------------------------------------------------------

FORGETS = """
import sys
if "-c" in sys.orig_argv:
    from stages.crawl import pages
    def begin(self, source, settings):
        row = (source, settings, __import__("time").time())
        made = "INSERT INTO crawls (source, settings, began) VALUES (?, ?, ?) RETURNING id"
        return pages.Crawl(self, source, self._db.execute(made, row).fetchone()[0])
    pages.Pages.begin = begin
"""
"""Every start is a crawl of its own."""

LOSES = """
import sys
if "stages.crawl.spider" in sys.orig_argv:
    from stages.crawl import asking
    from stages.crawl.pages import Answer
    ask = asking.Asker.ask
    async def mark_and_ask(self, url, referrer, role):
        self._crawl.keep(Answer(url, 0, reason="unreachable", passing=True, role=role))
        return await ask(self, url, referrer, role)
    asking.Asker.ask = mark_and_ask
"""
"""An address counts as done when it is asked, as in Scrapy's JOBDIR."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "expected"),
    [(FORGETS, "asked for again"), (LOSES, "documents.jsonl differs")],
    ids=["a frontier that forgets", "what is under way is lost"],
)
def test_a_planted_fault_is_found(plant: str, expected: str, tmp_path: Path) -> None:
    kills = [Kill(at_request=20, under_way=8, in_body=False, victims="both")]
    wrong = trial(tmp_path, kills, plant)
    assert any(expected in line for line in wrong), wrong
