"""Code of a folder and of a git repository: symbols with their lines, and links that hold."""

import ast
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import parse_here, refresh_and_run

from stages import crawl
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import Document, Reject
from stages.core.store import read
from stages.crawl import code, fetching, source, workers
from stages.crawl.code import docstring, forge, python, symbols
from stages.crawl.page import Page, UnreadableError

ROOT = Path(__file__).resolve().parent.parent
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")

TOOL = '''"""Renders widgets.

A widget is drawn once.
"""

from typing import overload

LIMIT = 42
"""How many widgets fit."""
#: Colours that exist.
COLOURS = ("green", "red")
plain = 1


@overload
def size(of: str) -> int: ...
@overload
def size(of: bytes) -> float: ...
def size(of):
    """The size of a thing, in millimetres, whatever it is made of and wherever it stands now.

    Args:
        of (str | bytes): The thing,
            or its name.
        **more: Ignored.

    Returns:
        A number.

    >>> size("a")
    1
    """
    return len(of)


class Widget(Base, metaclass=Meta):
    """A part that can be drawn."""

    name: str
    """What it is called."""
    colour: str = "green"  #: Its paint.
    _secret = 3

    def __init__(self, name: str, *, colour: str = "green") -> None:
        self.name = name

    @property
    def area(self) -> float:
        """How much paint it takes, in square millimetres; twice as much for both of its sides."""
        return 1.0

    @area.setter
    def area(self, value: float) -> None:
        self._area = value

    @classmethod
    async def load(cls, path: "Path") -> "Widget":
        """Read a widget from a file that was written by the same version of this very library."""
        return cls(path.name)

    def tiny(self):
        return 1

    def _private(self):
        """This is not for you, whoever you are, and its docstring is quite long, too.

        It says more."""

    class Part:
        """A part of a part."""


if True:

    def late(a, /, b=1, *args, c, **kw):
        """Comes late, but it comes, and it is documented at such a length that it has its page."""
'''


def settings_of(**changes: Any) -> python.Settings:
    return python.Settings(**{"private": False, "max_source_lines": 60, **changes})


def pages(text: str | bytes, path: str = "src/lib/tool.py", **changes: Any) -> dict[str, Page]:
    body = text if isinstance(text, bytes) else text.encode()
    found = python.pages(
        body, path, path, lambda *lines: forge.lines(path, *lines), settings_of(**changes)
    )
    return {page.title: page for page in found}


def lines_of(page: Page, text: str) -> str:
    """The lines of the source that the page's address names."""
    first, _, last = page.url.partition("#L")[2].partition("-L")
    return "\n".join(text.split("\n")[int(first) - 1 : int(last or first)])


def test_every_symbol_has_a_page_with_its_name_signature_docstring_and_lines():
    found = pages(TOOL)
    assert list(found) == [
        "lib.tool",
        "lib.tool.size",
        "lib.tool.Widget",
        "lib.tool.Widget.area",
        "lib.tool.Widget.load",
        "lib.tool.late",
    ]
    size = found["lib.tool.size"]
    assert lines_of(size, TOOL).startswith("@overload") and lines_of(size, TOOL).endswith("len(of)")
    assert "`size(of: str) -> int`\n\n`size(of: bytes) -> float`" in size.text
    assert "- `of` (str | bytes): The thing, or its name.\n- `**more`: Ignored." in size.text
    assert '```pycon\n>>> size("a")\n1\n```' in size.text
    assert "    return len(of)\n```" in size.text and size.text.count("in millimetres") == 1
    assert "@property Widget.area() -> float" in found["lib.tool.Widget.area"].text
    assert "area.setter" in lines_of(found["lib.tool.Widget.area"], TOOL)
    load = found["lib.tool.Widget.load"]
    assert "`@classmethod async def Widget.load(path: 'Path') -> 'Widget'`" in load.text
    assert "`late(a, /, b=1, *args, c, **kw)`" in found["lib.tool.late"].text
    assert found["lib.tool.late"].headings[0].anchor == found["lib.tool.late"].url.partition("#")[2]


def test_a_class_tells_its_fields_its_small_methods_and_its_members():
    text = pages(TOOL)["lib.tool.Widget"].text
    assert "`class Widget(Base, metaclass=Meta): Widget(name: str, *, colour: str='green')`" in text
    assert "- `name: str`: What it is called.\n- `colour: str = 'green'`: Its paint." in text
    assert "## `Part`" in text and "A part of a part." in text
    assert "def tiny(self):" in text and "_secret" not in text and "_private" not in text
    assert "- `@property Widget.area() -> float`: How much paint it takes" in text
    assert "_private" in pages(TOOL, private=True)["lib.tool.Widget._private"].text


def test_a_module_tells_its_constants_and_contents():
    text = pages(TOOL)["lib.tool"].text
    assert "Renders widgets." in text
    assert "- `LIMIT = 42`: How many widgets fit." in text
    assert "- `COLOURS = ('green', 'red')`: Colours that exist." in text
    assert "plain" not in text
    assert "- `size(of: bytes) -> float`: The size of a thing" in text


TWICE = '''
try:

    class Reader:
        """Reads with the fast library, which has to be there, as it is on most machines today."""

        def read(self):
            """Everything that is there, in one piece, as a fast library gives it to all who ask."""

except ImportError:

    class Reader:
        """Reads without the fast library, which takes longer and gives the very same bytes."""

        def read(self):
            """Everything that is there, piece by piece, and put together in the end by this one."""
'''


def test_what_is_defined_twice_is_known_apart_with_all_that_is_inside():
    found = python.pages(
        TWICE.encode(), "m.py", "m.py", lambda *lines: forge.lines("m.py", *lines), settings_of()
    )
    keys = ["m.py::Reader", "m.py::Reader.read", "m.py::Reader#2", "m.py::Reader#2.read"]
    assert [page.key for page in found if page.key != "m.py::"] == keys


def test_the_stage_stops_where_two_documents_would_have_one_id(tmp_path, monkeypatch):
    folder = project(tmp_path / "in")
    monkeypatch.setattr(python._Reader, "_keyed", lambda _, page, name: replace(page, key="same"))
    with pytest.raises(AssertionError, match=r"two documents have the id .*: src/lib/tool.py"):
        crawled(tmp_path / "out", folder)


def test_an_example_is_shown_with_what_it_runs():
    text = (
        '"""An example of how a widget is drawn on a screen."""\n\nimport tool\n\n'
        "for n in range(3):\n    tool.draw(n)\nprint('done')\n"
    )
    [page] = pages(text, "examples/draw.py").values()
    assert "for n in range(3):\n    tool.draw(n)\nprint('done')" in page.text


def test_a_long_function_is_cut_and_says_so():
    text = "def long():\n" + "".join(f"    x{n} = {n}\n" for n in range(100))
    page = pages(text, max_source_lines=10)["lib.tool.long"]
    assert "# … 91 more lines" in page.text and page.url.endswith("#L1-L101")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"print 'hello'\n", "python_2"),
        (b"try:\n    pass\nexcept IOError, e:\n    pass\n", "python_2"),
        (b"def broken(:\n", "syntax_error"),
        (b"x = 1\0\n", "binary"),
        (b"# coding: nonsense\nx = 1\n", "bad_encoding"),
        (b"# coding: punycode\nx = 1\n", "bad_encoding"),
        (b"# coding: rot13\nx = 1\n", "bad_encoding"),
        (b"x = '\xff'\n", "bad_encoding"),
        (b"x = " + b"(" * 5000 + b")" * 5000, None),
        (b"x = " + b"-" * 100_000 + b"1", None),
        (b"X = a" + b".b" * 2000, "too_complex"),
        (b"", "empty"),
        (b"import os\n", "empty"),
    ],
)
def test_what_is_no_python_of_today_is_a_reject_with_its_reason(body, reason):
    with pytest.raises(UnreadableError) as caught:
        pages(body)
    assert caught.value.reason == reason or (
        reason is None and caught.value.reason in ("too_complex", "syntax_error")
    )


def test_a_coding_cookie_is_obeyed():
    text = '# -*- coding: latin-1 -*-\n"""Grüße an alle, die mit Widgets zu tun haben: ' + "x" * 80
    [page] = pages((text + '"""\n').encode("latin-1")).values()
    assert "Grüße" in page.text


@given(st.sampled_from(sorted((ROOT / "stages").rglob("*.py"))), st.data())
@settings(max_examples=40, deadline=None)
def test_no_cut_of_real_code_is_more_than_a_reject(path, data):
    body = path.read_bytes()
    cut = body[: data.draw(st.integers(0, len(body)))]
    try:
        found = pages(cut)
    except UnreadableError:
        return
    assert found


def test_the_lines_of_every_symbol_of_this_project_hold_its_definition():
    num_symbols = 0
    for path in sorted((ROOT / "stages").rglob("*.py")):
        text = path.read_text()
        try:
            found = pages(text, path.relative_to(ROOT).as_posix())
        except UnreadableError as error:
            assert error.reason == "empty"
            continue
        for title, page in found.items():
            if "#" in page.url:
                name = title.rpartition(".")[2]
                lines = inspect_dedented(lines_of(page, text))
                [node, *_] = ast.parse(lines).body
                assert node.name == name
                num_symbols += 1
    assert num_symbols > 500


def inspect_dedented(lines: str) -> str:
    import textwrap

    return textwrap.dedent(lines)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Do.\n\n:param str a: First,\n    and on.\n:returns: It.\n:rtype: int",
            "- `a`: First, and on.",
        ),
        (
            "Do.\n\nParameters\n----------\na : int\n    First.\nb\n    Second.",
            "- `a` (int): First.",
        ),
        ("Do.\n\nRaises:\n    ValueError: If bad.", "**Raises:**\n\n- `ValueError`: If bad."),
        ("Do::\n\n    x = 1\n\nMore.", "Do:\n\n```\nx = 1\n```\n\nMore."),
        ("Plain `words`.", "Plain `words`."),
        ("Notes\n-----\nIt is so.", "**Notes:**\n\nIt is so."),
    ],
)
def test_docstrings_of_every_form_are_markdown(said, expected):
    assert expected in docstring.markdown(said)


@given(st.text("a:\n -_>.`(*)Args Returns", max_size=200))
@settings(max_examples=150, deadline=None)
def test_no_docstring_stops_the_reader(said):
    words = "".join(said.split())
    kept = "".join(docstring.markdown(said).split())
    assert bool(words) >= bool(kept)


# --- links to a forge --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "base", "lines"),
    [
        ("https://github.com/o/r.git", "https://github.com/o/r/blob/c0", "L3-L9"),
        ("git@github.com:o/r.git", "https://github.com/o/r/blob/c0", "L3-L9"),
        ("https://u:secret@github.com/o/r", "https://github.com/o/r/blob/c0", "L3-L9"),
        ("https://gitlab.com/a/b/r.git", "https://gitlab.com/a/b/r/-/blob/c0", "L3-9"),
        ("ssh://git@gitlab.e.org:22/a/r", "https://gitlab.e.org/a/r/-/blob/c0", "L3-9"),
        ("https://bitbucket.org/o/r", "https://bitbucket.org/o/r/src/c0", "lines-3:9"),
        ("https://codeberg.org/o/r", "https://codeberg.org/o/r/src/commit/c0", "L3-L9"),
        ("http://gitea.local:3000/o/r", "http://gitea.local:3000/o/r/src/commit/c0", "L3-L9"),
        ("https://example.org/o/r", None, ""),
        ("/srv/git/r.git", None, ""),
        ("file:///srv/github/r.git", None, ""),
        ("https://[bad/o/r", None, ""),
    ],
)
def test_a_remote_leads_to_its_forge_at_the_commit(remote, base, lines):
    assert forge.base(remote, "c0") == base
    if base:
        assert forge.lines(base, 3, 9) == lines


def test_a_forge_of_ones_own_is_named():
    assert (
        forge.base("https://code.e.org/o/r", "c0", "gitlab") == "https://code.e.org/o/r/-/blob/c0"
    )


# --- folders and repositories ------------------------------------------------------------------


def sections(path: object, **changes: Any) -> tuple[crawl.Config, crawl.Source]:
    params = {
        "crawl": yaml.safe_load((ROOT / "conf/crawl/default.yaml").read_text()),
        "source": yaml.safe_load((ROOT / "conf/source/code.yaml").read_text())
        | {"path": str(path)},
    }
    for key, value in changes.items():
        params["crawl" if key in params["crawl"] else "source"][key] = value
    return (
        config.load(params, "crawl", crawl.Config),
        config.load(params, "source", crawl.Source),
    )


def crawled(out: Path, path: object, **changes: Any) -> tuple[dict[str, Document], dict[str, str]]:
    refresh_and_run(out, *sections(path, **{"max_reject_rate": 1.0, **changes}), here=True)
    documents = {row.url: row for row in read(out / "documents.jsonl", Document)}
    rejects = {
        row.detail.partition(": ")[0]: row.reason for row in read(out / "rejects.jsonl", Reject)
    }
    return documents, rejects


def project(folder: Path) -> Path:
    """A small project: code, an example, documentation, other languages and what is none."""
    for name, text in {
        "src/lib/tool.py": TOOL,
        "src/lib/__init__.py": "",
        "examples/draw.py": "import lib\n\n" + "lib.draw('a widget of steel')\n" * 5,
        "README.md": "# Lib\n\n## Usage\n\nSee [the guide](docs/guide.rst). " + "Words. " * 20,
        "docs/guide.rst": "Guide\n=====\n\nThe guide tells how a widget is drawn. " * 3,
        "web/app.ts": "".join(f"export const c{n} = {n};\n" for n in range(90)),
        "Makefile": "all:\n\techo 'everything that is to be done is done by this one target'\n" * 3,
        "old.py": "print 'hello'\n",
        "logo.png": "\x89PNG",
        "tests/test_tool.py": "def test(): pass\n",
        ".git-credentials": "SECRET",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@e.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *who, "-c", "commit.gpgsign=false", *words], cwd=folder, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_folder_gives_code_documentation_and_examples_by_path(tmp_path):
    documents, rejects = crawled(tmp_path / "out", project(tmp_path / "in"))
    assert sorted(url.partition("#")[0] for url in documents) == sorted(
        [
            *(["src/lib/tool.py"] * 6),
            "Makefile",
            "README.md",
            "docs/guide.rst",
            "examples/draw.py",
            "web/app.ts",
        ]
    )
    assert rejects == {"old.py": "python_2", "logo.png": "not_text", "src/lib/__init__.py": "empty"}
    app = documents["web/app.ts"]
    assert [heading.anchor for heading in app.headings] == ["L1-L80", "L81-L90"]
    assert "Usage" in [heading.title for heading in documents["README.md"].headings]


def test_a_symbol_keeps_its_id_when_its_lines_move(tmp_path):
    folder = project(tmp_path / "in")
    first, _ = crawled(tmp_path / "one", folder)
    (folder / "src/lib/tool.py").write_text("# A line above.\n" + TOOL)
    second, _ = crawled(tmp_path / "two", folder)
    assert {row.title: row.id for row in first.values()} == {
        row.title: row.id for row in second.values()
    }
    assert first.keys() != second.keys()


@needs_git
def test_a_repository_at_a_revision_is_read_from_its_commit(tmp_path):
    folder = project(tmp_path / "in")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    (folder / "link.md").symlink_to("/etc/passwd")
    git(folder, "add", "link.md")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v1")
    git(folder, "commit", "-qm", "two", "--allow-empty")
    head = git(folder, "rev-parse", "HEAD~1")
    (folder / "src/lib/tool.py").write_text("def new(): pass\n")
    git(folder, "commit", "-qam", "three")
    for revision in ("v1", head, head[:10]):
        documents, rejects = crawled(tmp_path / revision, folder, revision=revision)
        assert "lib.tool.size" in {row.title for row in documents.values()}
        assert rejects["link.md"] == "not_a_file"
    documents, _ = crawled(tmp_path / "main", f"file://{folder}", revision="main")
    assert "lib.tool.size" not in {row.title for row in documents.values()}
    with pytest.raises(
        PipelineError, match=r"source.revision: 'nowhere': no such branch, tag or commit"
    ):
        crawled(tmp_path / "nowhere", folder, revision="nowhere")


@needs_git
def test_what_is_committed_is_linked_at_its_commit_and_what_is_not_by_path(tmp_path, monkeypatch):
    folder = project(tmp_path / "in")
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", "git@github.com:o/r.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    one = git(folder, "rev-parse", "HEAD")
    (folder / "web/app.ts").write_text(
        "export const changed = 'but not committed yet, so no link';\n" * 3
    )
    documents, _ = crawled(tmp_path / "out", folder)
    base = f"https://github.com/o/r/blob/{one}"
    assert f"{base}/src/lib/tool.py#L16-L35" in documents or any(
        url.startswith(f"{base}/src/lib/tool.py#L") for url in documents
    )
    assert "web/app.ts" in documents and f"{base}/README.md" in documents
    assert f"]({base}/docs/guide.rst)" in documents[f"{base}/README.md"].text

    # The next commit changes one file: only that one is another document.
    (folder / "Makefile").write_text(
        "none:\n\techo 'there is nothing left that could be done here'\n" * 3
    )
    git(folder, "commit", "-qam", "two")
    two = git(folder, "rev-parse", "HEAD")
    cfg, whole = sections(folder, max_reject_rate=1.0)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    [change] = fetching.refresh(cfg, whole, source.parts(whole), tmp_path / "out.snapshot.json")
    assert set(change.changed) == {"Makefile", "web/app.ts"} and not change.new
    monkeypatch.setattr(workers, "parse", parse_here)
    crawl.run(cfg, whole, tmp_path / "out.snapshot.json", tmp_path / "out")
    after = {row.url: row for row in read(tmp_path / "out" / "documents.jsonl", Document)}
    assert after[f"{base}/README.md"] == documents[f"{base}/README.md"]
    assert f"https://github.com/o/r/blob/{two}/Makefile" in after


@needs_git
@pytest.mark.parametrize("revision", [None, "main"])
def test_links_follow_to_another_forge_though_no_file_has_changed(tmp_path, revision):
    folder = project(tmp_path / "in")
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", "https://code.e.org/o/r.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    at = {"revision": revision}
    if revision:  # where the remote is said in the address itself, the forge alone can change
        at["public_url"] = None

    def readme(**changes: Any) -> list[str]:
        documents, _ = crawled(tmp_path / "out", folder, **at, **changes)
        return [url for url in documents if "README.md" in url]

    head = git(folder, "rev-parse", "HEAD")
    assert readme(forge="gitlab") == [f"https://code.e.org/o/r/-/blob/{head}/README.md"]
    assert readme(forge="gitea") == [f"https://code.e.org/o/r/src/commit/{head}/README.md"]
    git(folder, "remote", "set-url", "origin", "git@other.e.org:o/r.git")
    (tmp_path / "out.snapshot.json").unlink()
    assert readme(forge="gitea") == [f"https://other.e.org/o/r/src/commit/{head}/README.md"]


@needs_git
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_lowered_limit_holds_for_files_that_are_known(tmp_path, revision):
    folder = project(tmp_path / "in")
    (folder / "large.py").write_text(f'"""{"Large. " * 200_000}"""\n')
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    documents, _ = crawled(tmp_path / "out", folder, revision=revision, max_file_mib=2)
    assert "large.py" in documents
    _, rejects = crawled(tmp_path / "out", folder, revision=revision, max_file_mib=1)
    assert rejects["large.py"] == "too_large"


@needs_git
def test_nothing_of_a_repository_is_run(tmp_path):
    """Its hooks, its filters and its submodules would each leave a file behind."""
    folder, ran = project(tmp_path / "in"), tmp_path / "ran"
    git(folder, "init", "-q")
    (folder / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    (folder / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = x\n\turl = "ext::sh -c touch% {ran}"\n\tupdate = !touch {ran}\n'
    )
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    for name in ("post-checkout", "reference-transaction", "post-index-change", "fsmonitor"):
        hook = folder / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
        hook.chmod(0o755)
    evil = f"touch {ran}"
    for key in ("filter.evil.clean", "filter.evil.smudge", "diff.evil.command", "core.fsmonitor"):
        git(folder, "config", key, evil)
    (folder / "old.py").write_text("print 'changed'\n")
    os.utime(folder / "src/lib/tool.py")
    crawled(tmp_path / "one", folder)
    crawled(tmp_path / "two", folder, revision="main")
    assert not ran.exists()
    # The plant: git as it is by default runs what the repository says.
    subprocess.run(["git", "status"], cwd=folder, capture_output=True)
    assert ran.exists()


@needs_git
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ssh://git@127.0.0.1/o/r", "expected a folder, or an https address of git"),
        ("git@127.0.0.1:o/r", "expected a folder, or an https address of git"),
        ("ext::sh -c touch", "no such file or folder"),
        ("http://127.0.0.1:9/o/r", "127.0.0.1"),
        ("http://169.254.169.254/o/r", "metadata"),
    ],
)
def test_git_has_no_way_to_where_it_may_not_go(tmp_path, path, expected):
    with pytest.raises(PipelineError, match=rf"source.path: '.*': .*{expected}"):
        crawled(tmp_path / "out", path)


@pytest.mark.parametrize("revision", ["--upload-pack=x", "a..b", "a b", "-x", ""])
def test_a_revision_is_a_name(revision):
    with pytest.raises(PipelineError, match=r"source.revision: .*expected a branch, a tag or a"):
        sections("x", revision=revision)


def test_names_of_modules_are_those_that_are_imported():
    names = {
        "src/lib/tool.py": "lib.tool",
        "lib/__init__.py": "lib",
        "setup.py": "setup",
        "a/b.pyi": "a.b",
    }
    assert {path: symbols.module_name(path) for path in names} == names
    assert code.place(sections("x")[1]) == "source.path: 'x'"
