"""Personal data and secrets leave a page; what documentation writes in their place stays."""

import re
import typing
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import within

from stages import crawl, llm, split, synthesize
from stages.answer import embedding
from stages.core import config
from stages.core.records import Heading
from stages.crawl.extract import extract
from stages.crawl.page import Page
from stages.crawl.scrub import clean, find, scrub
from stages.crawl.settings import Kind, Scrub
from stages.crawl.site import Site

KINDS: list[Kind] = list(typing.get_args(Kind))
ALL = Scrub(kinds=KINDS, allow=[])
SHIPPED = Scrub(kinds=[kind for kind in KINDS if kind != "ip_address"], allow=[])

# Secrets are written in two parts, so that no scanner of this repository takes them for real.
PEM = (
    "-----BEGIN RSA PRIVATE " + "KEY-----\n"
    "MIIEpAIBAAKCAQEA1c7+9z5Pad7OejecsQ0bu3aozN3tihPmUODnrQvTqVzqLbQx\n"
    "Zm9vYmFyYmF6cXV4cXV1eGNvcmdlZ3JhdWx0Z2FycGx5d2FsZG9mcmVkcGx1Z2h4\n"
    "-----END RSA PRIVATE " + "KEY-----"
)
PLANTED: list[tuple[str, str, str]] = [
    # kind, what is planted, the words around it
    ("email", "anna.schmidt@firma-berlin.de", "Write to {} for help."),
    ("email", "j.o'neill@mail.corp.io", "Owner: {}"),
    ("email", "first.last+tag@sub.uni-wien.ac.at", "<{}>"),
    ("email", "x_y-z@gmail.com", "[mail](mailto:{})"),
    ("email", "kai%40nordwind.no", "[mail](mailto:{})"),
    ("email", "REG@NASA.GOV", "author_email = '{}',"),
    ("email", "li.wei@163.com", "({})."),
    ("email", "ops@data.museum", "Reply-To: {}\n"),
    ("email", "sales@münchen-fake.com".replace("ü", "u"), "| name | {} |"),
    ("phone", "+49 30 901820 44", "Call {} at night."),
    ("phone", "+1 415 867 2930", "or {}"),
    ("phone", "+44 (0)20 7946 1234", "Tel. {}"),
    ("phone", "+33 1 42 68 53 00", "{}"),
    ("phone", "(415) 867-2930", "call {} now"),
    ("phone", "415-867-2930", "call {} now"),
    ("phone", "415.867.2930", "fax {}"),
    ("phone", "030 / 2090-7035", "Phone: {}"),
    ("phone", "0171 2345987", "Mobile: {}"),
    ("phone", "+4930901820", "[call](tel:{})"),
    ("credit_card", "4539 1488 0343 6467", "card {} is refused"),
    ("credit_card", "4539148803436467", "card {} is refused"),
    ("credit_card", "4539-1488-0343-6467", "`{}`"),
    ("credit_card", "5425233430109903", "number={}"),
    ("credit_card", "374245455400126", "Amex {}"),
    ("credit_card", "3742 454554 00126", "Amex {}"),
    ("credit_card", "6011000991300009", "{},"),
    ("iban", "DE75512108001245126199", "to {}"),
    ("iban", "DE75 5121 0800 1245 1261 99", "to {}."),
    ("iban", "FR7630006000011234567890189", "IBAN: {}"),
    ("iban", "GB33BUKB20201555555555", "{}"),
    ("iban", "CH5604835012345678009", "{}"),
    ("ssn", "536-90-4399", "SSN {}"),
    ("ssn", "212-86-1234", "his number, {}, was"),
    ("ip_address", "8.8.4.4", "ping {}"),
    ("ip_address", "2606:4700:4700::1111", "ping {}"),
    ("api_key", "AKIA" + "Z7Q4M2NV6TK9R3WB", "key {}"),
    ("api_key", "ASIA" + "Z7Q4M2NV6TK9R3WB", "id: {}"),
    ("api_key", "ghp_" + "k3Jx9QmWv7TzLr2NbYcP5sDfGh8aKe4uX1oV", "TOKEN={}"),
    ("api_key", "github_pat_" + "11ABCDEFG0kq93mZxV71Lr_4Jx9QmWv7TzLr2NbYcP5sD", "`{}`"),
    ("api_key", "glpat-" + "Zx9Lk3Qw7Rt5Yp2Mn8Vb", "{}"),
    ("api_key", "xoxb-" + "218734981234-9182736450-kJx9QmWv7TzLr2NbYcP5sDfG", "slack: {}"),
    (
        "api_key",
        "https://hooks.slack.com/services/" + "T02K8J4QZ/B05M7N3RX/k9QmWv7TzLr2NbYcP5sD",
        "{}",
    ),
    ("api_key", "AIza" + "SyB9kQ3mZ7xW1vLr4NcP5sDfGh8aKe2uXoT", "key={}"),
    ("api_key", "sk_live_" + "51Hx9QmWv7TzLr2NbYcP5sD", "stripe {}"),
    ("api_key", "rk_live_" + "51Hx9QmWv7TzLr2NbYcP5sD", "stripe {}"),
    ("api_key", "sk-proj-" + "k9QmWv7TzLr2NbYcP5sDfGh8aKe4uX1oV3Jx", "export OPENAI_API_KEY={}"),
    ("api_key", "sk-" + "k9QmWv7TzLr2NbYcP5sDfGh8aKe4uX1oV3JxT3BlbkFJ", "openai {}"),
    ("api_key", "sk-ant-" + "api03-k9QmWv7TzLr2NbYcP5sDfGh8aKe4uX1oV3Jx-AA", "x-api-key: {}"),
    ("api_key", "hf_" + "kQmWvTzLrNbYcPsDfGhaKeuXoVJxqW9wZt", "login {}"),
    ("api_key", "npm_" + "k3Jx9QmWv7TzLr2NbYcP5sDfGh8aKe4uX1oV", "{}"),
    ("api_key", "SG." + "k3Jx9QmWv7TzLr2NbYcP5s.DfGh8aKe4uX1oVk3Jx9QmWv7TzLr2NbYcP5sDfGh8aK", "{}"),
    (
        "jwt",
        "eyJhbGciOiJIUzI1NiJ9." + "eyJ1aWQiOjQyLCJyb2xlIjoiYWRtaW4ifQ.k9QmWv7TzLr2NbYcP5sDfGh8aKe",
        "{}",
    ),
    ("private_key", PEM, "```\n{}\n```"),
    ("private_key", PEM.replace("RSA ", ""), "key:\n\n{}\n"),
    ("private_key", PEM.replace("RSA ", "OPENSSH "), "{}"),
    ("url_credentials", "deploy:Zk8sPq2vLw9", "git clone https://{}@git.corp.io/x.git"),
    ("url_credentials", "root:hunter2boat", "postgresql://{}@10a.db.corp.io:5432/app"),
    ("url_credentials", ":8fKq2LmZ", "redis://{}@cache.corp.io/0"),
    ("secret", "Zk8sPq2vLw9xR4tY7uB1", 'password = "{}"'),
    ("secret", "Tr0ub4dor&3", "password: '{}'"),
    ("secret", "wJ2lrXq7tnFEMI9K7MDENGbPxRfiCYzk4Lm0Qv8T", "aws_secret_access_key={}"),
    ("secret", "9f86d081884c7d659a2feaa0c55ad015", "API_KEY={}"),
    ("secret", "9f86d081884c7d659a2feaa0c55ad015", '"client_secret": "{}"'),
    ("secret", "q9Lm2Zx7Rt5Yp3Nv8Kb1Wc6", "Authorization: Bearer {}"),
    ("secret", "q9Lm2Zx7Rt5Yp3Nv8Kb1Wc6", "DB_PASSWD={}"),
]
KEPT = [
    "user@example.com", "jane.doe@mail.example.org", "admin@host.test", "root@localhost",
    "you@yourdomain.com", "git@github.com:owner/name.git", "ssh://git@example.com/x",
    "@pytest.mark.slow", "matmul a @ b.T", "pkg@1.2.3", "name@2x.png", "systemd getty@tty1.service",
    "127.0.0.1", "192.0.2.17", "198.51.100.3", "203.0.113.9", "10.0.0.8", "::1", "2001:db8::1",
    "0.0.0.0", "12:30:45", "std::vector",
    "555-0100", "212-555-0123", "(212) 555-0199", "+1 212 555 0142", "1234-5678", "2026-11-28",
    "2026-11-28 10:00:00", "1.800.2", "3.14159265358979", "4503599627370496", "0x7fffffffffff",
    "4111 1111 1111 1111", "4242424242424242", "378282246310005", "1234567890123456",
    "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "AB12 CDEF 3456",
    "123-45-6789", "078-05-1120", "000-12-3456", "ISBN 978-3-16-148410-0", "RFC 2606",
    "AKIAIOSFODNN7EXAMPLE", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sk-xxxxxxxxxxxxxxxxxxxxxxxx", "sk-ant-api03-...",
    "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "sk-learn-contrib-and-other-packages",
    "OPENAI_API_KEY=sk-your-key-goes-here-1234", "export TOKEN=<your token>", "token: ${TOKEN}",
    "password = os.environ['PASSWORD']", "password = getpass.getpass()", "password: changeme",
    'password="password123"', "secret = secrets.token_hex(16)", "key=lambda row: row.name",
    "token = parser.next_token", "max_new_tokens: 512", "api_key: null", "PASSWORD=********",
    "postgresql://scott:tiger@localhost/test", "http://user:pass@host:port/path",
    "https://user:password@example.com/", "http://127.0.0.1:5000/a@b",
    "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN CERTIFICATE-----\nMIIC4jCCAkugAwIBAgIJAK\n-----END CERTIFICATE-----",
    "Authorization: Bearer <token>",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "uuid 123e4567-e89b-12d3-a456-426614174000",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "planted", "around"), PLANTED, ids=lambda value: str(value)[:30])
def test_what_is_planted_gives_way_to_its_placeholder(kind: str, planted: str, around: str) -> None:
    text = clean(around.format(planted), ALL)
    assert planted not in text
    assert f"<{kind.replace('_', '-')}>" in text
    assert find(text, ALL) == []


def test_at_least_sixty_cases_are_planted_and_every_kind_is_among_them() -> None:
    assert len(PLANTED) >= 60
    assert {kind for kind, _, _ in PLANTED} == set(KINDS)


@pytest.mark.parametrize("text", KEPT, ids=lambda text: str(text)[:30])
def test_what_documentation_writes_in_place_of_a_secret_stays(text: str) -> None:
    for around in ("{}", "Use {} here.", "`{}`", "```\n{}\n```"):
        whole = around.format(text)
        assert clean(whole, ALL) == whole


def test_addresses_of_machines_stay_where_their_kind_is_not_asked_for() -> None:
    assert clean("ping 8.8.4.4", SHIPPED) == "ping 8.8.4.4"


def test_what_is_allowed_stays() -> None:
    allowing = Scrub(kinds=KINDS, allow=[r"@acme\.io$"])
    text = clean("help@acme.io and someone.else@acme-partner.io", allowing)
    assert text == "help@acme.io and <email>"


def test_headings_still_stand_where_they_say() -> None:
    text = (
        "# Über uns\n\nanna@firma.de, bob@firma.de\n\n## Kontakt +49 30 901820 44\n\nµ 536-90-4399"
        "\n\n### Ende\n"
    )
    lines = [line for line in text.splitlines() if line.startswith("#")]
    headings = tuple(
        Heading(
            start=text.encode().index(line.encode()),
            level=line.count("#"),
            title=line.strip("# "),
            anchor="",
        )
        for line in lines
    )
    page, counts = scrub(Page("https://a.example/", "anna@firma.de", text, headings), SHIPPED)
    assert counts == Counter(email=2, phone=1, ssn=1)
    assert page.title == "<email>"
    assert [heading.title for heading in page.headings] == ["Über uns", "Kontakt <phone>", "Ende"]
    for heading in page.headings:
        line = page.text.encode()[heading.start :].decode().splitlines()[0]
        assert line == f"{'#' * heading.level} {heading.title}"


PIECES = st.sampled_from(
    [around.format(planted) for _, planted, around in PLANTED]
    + [planted for _, planted, _ in PLANTED]
    + KEPT
    + [
        "# Titel ü",
        "\n",
        "\n\n",
        " ",
        "4",
        "5",
        "-",
        "@",
        ".",
        "a",
        "<email>",
        "1 ",
        "+",
        "://",
        "=",
    ]
)


def check_scrubbed(pieces: list[str]) -> None:
    """Nothing matches any more, and each heading is found at its offset."""
    text = "".join(pieces)
    starts = [match.start() for match in re.finditer(r"(?m)^# Titel ü", text)]
    headings = tuple(
        Heading(start=len(text[:start].encode()), level=1, title="Titel ü", anchor="")
        for start in starts
    )
    page, counts = scrub(Page("https://a.example/", "", text, headings), ALL)
    assert find(page.text, ALL) == []
    assert bool(counts) == (page.text != text)
    for heading in page.headings:
        assert page.text.encode()[heading.start :].startswith("# Titel ü".encode())


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_a_scrubbed_text_never_matches_again(pieces: list[str]) -> None:
    check_scrubbed(pieces)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=16))
def test_ten_thousand_scrubbed_texts_never_match_again(pieces: list[str]) -> None:
    check_scrubbed(pieces)


def test_findings_cost_time_in_proportion_to_their_number() -> None:
    """A table of contacts, and one without a space; the square of each takes minutes to hours."""
    people = "".join(f"## P {n}\n\nann.{n}@corp{n}.io, 0171 2345{n:06}\n\n" for n in range(15_000))
    headings = tuple(
        Heading(start=match.start(), level=2, title=f"P {n}", anchor="")
        for n, match in enumerate(re.finditer("## P", people))
    )
    with within(20):
        page, counts = scrub(Page("u", "t", people, headings), SHIPPED)
        assert clean("+49 30 901820 44" * 15_000, SHIPPED) == "<phone>" * 15_000
    assert counts["email"] == 15_000
    text = page.text.encode()
    for heading in page.headings:
        assert text[heading.start :].startswith(f"## {heading.title}\n".encode())


@pytest.mark.parametrize("between", ["", "\n", " and ", "sales@corp.io", "(415) 867-2930"])
def test_findings_that_touch_are_all_found(between: str) -> None:
    row = "+49 30 901820 44" + f"{between}+49 30 901820 44" * 40
    assert "901820" not in clean(row, SHIPPED)


MANUAL = Path("/usr/share/doc/python3-doc/html")
# Four pages show a message's id, an invented address or an invented telephone book.
INVENTED = {"faq/library.html", "library/nntplib.html", "library/re.html", "whatsnew/3.3.html"}


@pytest.mark.slow
@pytest.mark.skipif(not MANUAL.exists(), reason="apt-get install python3-doc")
def test_in_pythons_manual_only_addresses_of_people_and_few_examples_are_found() -> None:
    site = Site.around("https://docs.example/", None)
    kinds: Counter[str] = Counter()
    pages_with: dict[str, set[str]] = {}
    for file in sorted(MANUAL.rglob("*.html")):
        name = file.relative_to(MANUAL).as_posix()
        text = extract(file.read_text(), f"https://docs.example/{name}", site).text
        for _, _, kind in find(text, SHIPPED):
            kinds[kind] += 1
            pages_with.setdefault(kind, set()).add(name)
    assert set(kinds) == {"email", "phone"}, kinds
    assert pages_with["phone"] <= INVENTED
    assert kinds["email"] <= 70 and len(pages_with["email"]) <= 25


# --- through the stages ------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
LEAKING = [
    ("email", "anna.schmidt@firma-berlin.de"),
    ("phone", "+49 30 901820 44"),
    ("api_key", "AKIA" + "Z7Q4M2NV6TK9R3WB"),
    ("secret", "Zk8sPq2vLw9xR4tY7uB1"),
    ("iban", "DE75512108001245126199"),
]


def leaks_of_a_run(folder: Path, **scrubbing: list[str]) -> tuple[dict[str, list[str]], Counter]:
    """Crawl pages with secrets, split them, write examples; the files that hold each secret."""
    site = folder / "site"
    site.mkdir()
    links = "".join(f'<a href="p{n}.html">Page {n}</a> ' for n in range(6))
    (site / "index.html").write_text(f"<title>Start</title><main><h1>Start</h1>{links}</main>")
    for n in range(6):
        mail, phone, key, password, iban = (planted for _, planted in LEAKING)
        (site / f"p{n}.html").write_text(
            f"<title>Page {n}</title><main><h1 id=top>Page {n} by {mail}</h1>"
            f"<p>The owner of service {n} is reached at {mail} or {phone} on day {n}.</p>"
            f"<h2 id=set>How to set up service {n}</h2>"
            f"<p>To set up service {n}, run this:</p><pre><code>export AWS_KEY={key}\n"
            f'password = "{password}"\nstart --service {n}</code></pre>'
            f"<p>The fee of service {n} goes to {iban} within {n + 3} days.</p></main>"
        )
    params = config.read(ROOT / "params.yaml")
    params["source"] |= {"serve_dir": str(site), "public_url": "https://a.example/"}
    params["crawl"] |= {"scrub": params["crawl"]["scrub"] | scrubbing, "min_chars": 20}
    params["synthesize"]["max_leak_rate"] = 1.0  # the pages are alike
    data = folder / "data"
    load = config.load
    crawl.run(
        load(params, "crawl", crawl.Config),
        load(params, "source", crawl.Source),
        folder / "snapshot.json",
        data / "crawl",
    )
    documents = data / "crawl/documents.jsonl"
    (data / "split").mkdir()
    split.run(
        load(params, "split", split.Config), load(params, "model", split.Model), documents,
        data / "split",
    )  # fmt: skip
    for name in ("review", "testset"):
        (folder / f"{name}.jsonl").touch()
    (data / "synthesize").mkdir()
    synthesize.run(
        load(params, "synthesize", synthesize.Config), llm.Outline(kind="outline"),
        embedding.NoEmbedder(kind="none"), documents, data / "crawl/imported.jsonl",
        data / "split/training.jsonl",
        data / "split/retrieval.jsonl", folder / "review.jsonl", folder / "testset.jsonl",
        data / "synthesize",
    )  # fmt: skip
    written = {file.name: file.read_text() for file in data.rglob("*") if file.is_file()}
    assert "train.jsonl" in written and "retrieval.jsonl" in written
    found = {
        kind: sorted(name for name, text in written.items() if planted in text)
        for kind, planted in LEAKING
    }
    counted = Counter(re.findall(r'"reason":\s*"(\w+)"', written["scrubbed.jsonl"]))
    return found, counted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_no_file_below_data_holds_a_secret_of_a_crawled_page(folder: Path) -> None:
    found, counted = leaks_of_a_run(folder)
    assert found == {kind: [] for kind, _ in LEAKING}
    assert counted == Counter(dict.fromkeys((kind for kind, _ in LEAKING), 6))


def test_the_test_above_sees_a_scrubber_that_is_off(folder: Path) -> None:
    found, counted = leaks_of_a_run(folder, kinds=["iban"])
    assert found.pop("iban") == []
    assert counted == Counter(iban=6)
    for kind, files in found.items():
        assert {"documents.jsonl", "retrieval.jsonl"} <= set(files), kind
    assert any("train.jsonl" in files for files in found.values())
