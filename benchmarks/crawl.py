"""Crawling beside wget, Scrapy's CrawlSpider, and that spider with trafilatura, on Python's manual.

Debian's python3-doc (`apt-get install python3-doc nginx`) is served by nginx on this machine, and
every crawler follows its links from the start page; nginx's log says what each has asked for.
Within a round they take turns, each a process of its own that is counted with its imports and its
children: CPU time is what the system charged to them, which what else the machine does hardly
changes. Ours is measured twice: the fetch alone, which ends with every body and its validators in
the page store, synced to the disk, and the whole, down to documents.jsonl. The plain CrawlSpider
keeps nothing; the one with trafilatura writes an item with the Markdown of each page. Figures are
medians; ratios are medians of the rounds' ratios.

Memory is the largest resident set of any process of ours, at 250, 500 and all pages, and on a site
of ten such manuals.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine

ROOT = Path(__file__).resolve().parents[1]
DOCS = Path("/usr/share/doc/python3-doc/html")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
TARGET = 3.0
MAX_GROWTH = 1.25
"""Largest ratio of the memory at the most pages to that at the fewest."""

Crawler = Callable[[str, Path], list[str]]
"""The command that crawls the site at an address into a folder."""


@dataclass(frozen=True)
class Run:
    """What one crawl took."""

    seconds: float
    cpu_s: float
    peak_mib: float
    urls: frozenset[str]

    @property
    def cpu_ms(self) -> float:
        """Per page."""
        return 1000 * self.cpu_s / len(self.urls)


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="one round, without the large site")
    reader.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    asked = reader.parse_args()
    if asked.worker:
        return WORKERS[asked.worker[0]](*asked.worker[1:])
    for tool, package in ((NGINX, "nginx"), ("wget", "wget")):
        if not shutil.which(tool):
            print(f"{tool} is missing: apt-get install {package}", file=sys.stderr)
            return 2
    if not DOCS.exists():
        print(f"{DOCS} is missing: apt-get install python3-doc", file=sys.stderr)
        return 2
    rounds = 1 if asked.quick else 3
    wget = subprocess.run(["wget", "--version"], capture_output=True, text=True).stdout.split()[2]
    said = subprocess.run([NGINX, "-v"], capture_output=True, text=True).stderr.split("/")[-1]
    print(machine.describe("scrapy", "selectolax", "html-to-markdown", "trafilatura"))
    print(f"wget {wget}, nginx {said.strip()}, {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # nginx does not serve as root, and must get in
        with served(DOCS, Path(folder)) as (url, log):
            found = measure(rounds, url, log, Path(folder))
        failed = report(found)
        sizes = [(DOCS, 250), (DOCS, 500), (DOCS, 0)]
        if not asked.quick:
            sizes.append((ten_manuals(Path(folder)), 0))
        return report_memory(sizes, Path(folder)) or failed


# --- the crawlers --------------------------------------------------------------------------------


def worker(name: str, url: str, out: Path, max_pages: int = 100_000) -> list[str]:
    return [
        *(sys.executable, "-m", "benchmarks.crawl"),
        *("--worker", name, url, str(out), str(max_pages)),
    ]


CRAWLERS: dict[str, Crawler] = {
    "ours: fetch": lambda url, out: worker("fetch", url, out),
    "CrawlSpider": lambda url, out: worker("crawlspider", url, out),
    "wget -r": lambda url, out: [
        *("wget", "-r", "-q", "-np", "-nH", "-l", "inf", "-e", "robots=off"),
        *("--accept-regex", r"(/|\.html)$", "-P", str(out), url),
    ],
    "ours: whole": lambda url, out: worker("whole", url, out),
    "CrawlSpider + trafilatura": lambda url, out: worker("trafilatura", url, out),
}


def fetch(url: str, out: str, max_pages: str) -> int:
    _ours(url, Path(out), int(max_pages), whole=False)
    return 0


def whole(url: str, out: str, max_pages: str) -> int:
    _ours(url, Path(out), int(max_pages), whole=True)
    return 0


def _ours(url: str, out: Path, max_pages: int, whole: bool) -> None:
    import yaml

    from stages import crawl
    from stages.core import config
    from stages.crawl import fetching

    os.environ["DVC_ROOT"] = str(out)  # where the page store goes
    out.mkdir(parents=True)
    params = {
        name: yaml.safe_load((ROOT / f"conf/{name}/{option}.yaml").read_text())
        for name, option in (("crawl", "default"), ("source", "web"))
    }
    params["crawl"] |= {"delay_s": 0.0, "max_pages": max_pages, "obey_robots": False}
    params["source"] |= {"url": url, "lists": [], "allow_hosts": ["127.0.0.1"]}
    cfg = config.load(params, "crawl", crawl.Config)
    source = config.load(params, "source", crawl.Source)
    snapshot = out / "snapshot.json"
    snapshot.write_text("{}")
    fetching.refresh(cfg, source, fetching.uncovered(cfg, source, snapshot), snapshot)
    if whole:
        crawl.run(cfg, source, snapshot, out / "crawl")


def crawlspider(url: str, out: str, max_pages: str) -> int:
    """Scrapy's own way of following links, as its tutorial has it."""
    _scrapy(url, Path(out), extracting=False)
    return 0


def trafilatura(url: str, out: str, max_pages: str) -> int:
    _scrapy(url, Path(out), extracting=True)
    return 0


def _scrapy(url: str, out: Path, extracting: bool) -> None:
    from scrapy.crawler import CrawlerProcess
    from scrapy.http import Response
    from scrapy.linkextractors import LinkExtractor
    from scrapy.spiders import CrawlSpider, Rule

    class Site(CrawlSpider):
        name = "site"
        start_urls = (url,)
        rules = (Rule(LinkExtractor(allow=re.escape(url)), follow=True, callback="page"),)

        def page(self, response: Response) -> Iterator[dict[str, str]]:
            if extracting:
                import trafilatura

                text = trafilatura.extract(
                    response.text,
                    output_format="markdown",
                    include_links=True,
                    include_tables=True,
                )
                yield {"url": response.url, "text": text or ""}

        parse_start_url = page

    process = CrawlerProcess(
        {
            "LOG_LEVEL": "ERROR",
            "ROBOTSTXT_OBEY": False,
            "CONCURRENT_REQUESTS_PER_DOMAIN": 8,
            "DOWNLOAD_DELAY": 0,
            "TELNETCONSOLE_ENABLED": False,
            "FEEDS": {str(out / "items.jsonl"): {"format": "jsonlines"}} if extracting else {},
        }
    )
    process.crawl(Site)
    process.start()


WORKERS = {
    "fetch": fetch,
    "whole": whole,
    "crawlspider": crawlspider,
    "trafilatura": trafilatura,
}


# --- the server ----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(site: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The folder over nginx on a free port; its address, and the log of paths asked for."""
    home = folder / "nginx"
    home.mkdir(exist_ok=True)
    log = home / "access.log"
    port = free_port()
    (home / "nginx.conf").write_text(
        f"""
daemon off; pid {home}/pid; error_log {home}/error.log; worker_processes 1;
events {{ }}
http {{
  types {{ text/html html; text/css css; application/javascript js; image/png png; }}
  default_type application/octet-stream; charset utf-8; sendfile on; etag on;
  log_format paths '$status $request_uri'; access_log {log} paths;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fast;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{ listen 127.0.0.1:{port}; root {site}; index index.html; }}
}}
"""
    )
    server = subprocess.Popen([NGINX, "-c", str(home / "nginx.conf"), "-e", f"{home}/error.log"])
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/", log
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    import socket

    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")


def ten_manuals(folder: Path) -> Path:
    """A site ten times as large, of the same pages at other addresses."""
    site = folder / "ten"
    site.mkdir()
    for number in range(10):
        (site / str(number)).symlink_to(DOCS)
    links = "".join(f"<a href='{number}/index.html'>manual {number}</a>" for number in range(10))
    (site / "index.html").write_text(f"<html><body>{links}</body></html>")
    return site


# --- measuring -----------------------------------------------------------------------------------


def run(command: list[str], log: Path) -> Run:
    """Run a crawler; what it and its children took, and which pages it was given."""
    seen = log.stat().st_size if log.exists() else 0
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    # A process between, so that the largest resident set is that of this run alone.
    code = (
        "import json, resource, subprocess, sys;"
        "status = subprocess.run(sys.argv[1:], stdout=2).returncode;"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([status, used.ru_maxrss]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, peak_kib = json.loads(done.stdout)
    if status and not (command[0] == "wget" and status == 8):  # wget's word for a dead link
        raise SystemExit(f"{' '.join(command)}: status {status}")
    with log.open() as file:
        file.seek(seen)
        rows = [line.split(maxsplit=1) for line in file.read().splitlines()]
    urls = frozenset(path for code, path in rows if code == "200" and path.endswith((".html", "/")))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu_s, peak_kib / 1024, urls)


def measure(rounds: int, url: str, log: Path, folder: Path) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {name: [] for name in CRAWLERS}
    for number in range(rounds):
        print(f"round {number + 1}", file=sys.stderr)
        for name, crawler in CRAWLERS.items():
            out = folder / f"{name.replace(' ', '-')}-{number}"
            found[name].append(run(crawler(url, out), log))
            shutil.rmtree(out, ignore_errors=True)
    return found


def report(found: dict[str, list[Run]]) -> bool:
    print(f"{'':<28}{'pages':>7}{'pages/s':>9}{'CPU ms/page':>13}{'peak MiB':>10}")
    for name, runs in found.items():
        pages = statistics.median(len(run.urls) for run in runs)
        speed = statistics.median(len(run.urls) / run.seconds for run in runs)
        cpu = statistics.median(run.cpu_ms for run in runs)
        peak = statistics.median(run.peak_mib for run in runs)
        print(f"{name:<28}{pages:>7.0f}{speed:>9.0f}{cpu:>13.2f}{peak:>10.0f}")
    theirs = found["CrawlSpider"][0].urls
    different = {
        name: run.urls ^ theirs
        for name, runs in found.items()
        for run in runs
        if run.urls != theirs
    }
    print()
    for name, urls in different.items():
        print(f"{name}: {len(urls)} addresses differ, such as {sorted(urls)[:3]}")
    same = all(run.urls == theirs for name in found if "ours" in name for run in found[name])
    print(f"figure crawl_same_urls {same:d} target 1")
    fetch = ratio(found, "CrawlSpider", "ours: fetch", lambda run: run.cpu_ms)
    whole = ratio(found, "CrawlSpider + trafilatura", "ours: whole", lambda run: run.cpu_ms)
    wall = ratio(found, "CrawlSpider + trafilatura", "ours: whole", lambda run: run.seconds)
    print(f"figure crawl_fetch_cpu_against_crawlspider {fetch:.2f} target {TARGET}")
    print(f"figure crawl_whole_cpu_against_trafilatura {whole:.2f} target {TARGET}")
    print(f"figure crawl_whole_speed_against_trafilatura {wall:.2f} target {TARGET}")
    return not same or min(fetch, whole, wall) < TARGET


def ratio(found: dict[str, list[Run]], theirs: str, ours: str, of: Callable[[Run], float]) -> float:
    pairs = zip(found[theirs], found[ours], strict=True)
    return statistics.median(of(peer) / of(own) for peer, own in pairs)


def report_memory(sizes: list[tuple[Path, int]], folder: Path) -> bool:
    print(f"\n{'pages':>7}{'peak MiB, fetch':>17}{'peak MiB, whole':>17}")
    peaks: dict[str, list[float]] = {"fetch": [], "whole": []}
    for number, (site, limit) in enumerate(sizes):
        with served(site, folder) as (url, log):
            runs = {}
            for name in peaks:
                out = folder / f"memory-{name}-{number}"
                runs[name] = run(worker(name, url, out, limit or 100_000), log)
                peaks[name].append(runs[name].peak_mib)
                shutil.rmtree(out)
        pages = len(runs["fetch"].urls)
        print(f"{pages:>7}{runs['fetch'].peak_mib:>17.0f}{runs['whole'].peak_mib:>17.0f}")
    growth = {name: found[-1] / found[0] for name, found in peaks.items()}
    for name, grown in growth.items():
        print(f"figure crawl_memory_growth_{name} {grown:.2f} target {MAX_GROWTH}")
    return max(growth.values()) > MAX_GROWTH


if __name__ == "__main__":
    sys.exit(main())
