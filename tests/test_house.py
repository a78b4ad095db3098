"""The rules of the house, held by the code: composition, names, DVC's edges, floors, the manual."""

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages import pipeline
from stages.core.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
SECTIONS = [group for group in GROUPS if group != "experiment"]
OPTIONS = [
    f"{path.parent.relative_to(ROOT / 'conf').as_posix()}={path.stem}"
    for depth in ("*/*.yaml", "*/*/*.yaml")
    for path in sorted((ROOT / "conf").glob(depth))
    # Formats and prompts stand beside each other under names: there is no one of them to choose.
    if path.parent.parent.name != "synthesize"
]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_params_yaml_is_the_composition_of_conf():
    composed = pipeline.render_params(pipeline.compose())
    assert composed == (ROOT / "params.yaml").read_text(), "run `make params`"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option):
    pipeline.check(pipeline.compose([option]))


def test_every_group_has_an_option():
    for section in SECTIONS:
        assert list((ROOT / "conf" / section).glob("*.yaml")), section


def test_a_planted_unknown_key_fails_the_check():
    params = pipeline.compose(["+split.retrieval.chunk_token=3"])
    with pytest.raises(PipelineError, match="did you mean chunk_tokens"):
        pipeline.check(params)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("source.url=https://a.example/x?y=z", r"want quotes .*'source\.url=\"https://a.*z\"'"),
        ("source.path=~/course", r"want quotes"),
        ("source.url=https://a.example/x,y", r"want quotes"),
        ("crawl.user_agent=me (+https://a.example)", r"want quotes"),
        ("source.include=[^/docs/]", r"'source\.include=\[\"\^/docs/\"\]'"),
        ("seed", "expected key=value"),
    ],
)
def test_a_value_that_hydra_reads_as_something_else_is_told_with_what_to_type(override, said):
    with pytest.raises(PipelineError, match=said) as told:
        pipeline.compose([override])
    assert "\n" not in str(told.value)


def test_what_one_section_asks_of_another_is_checked_before_anything_runs():
    pipeline.check(pipeline.compose(["embedder=none"]))
    for overrides, said in (
        (
            ["embedder=none", "answer.search.method=dense"],
            r"answer\.search\.method: 'dense'.*lexical",
        ),
        (["answer.search.sources=[manaul]"], r"no such source \(did you mean manual\?\)"),
    ):
        with pytest.raises(PipelineError, match=said):
            pipeline.check(pipeline.compose(overrides))


COMMAND = re.compile(
    r"^(?:python -m stages (?:run|refresh|plan|params|sweep -m)|make (?:run|refresh|sweep))\b(.*)$"
)
THE_READERS = {"split=short", "experiment=short", "synthesize/prompts=mine"}
"""Options that the manual has its reader make."""


def commands() -> list[str]:
    """Overrides of every command in the manual, as a shell hands them over."""
    found = []
    for path in sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            match = COMMAND.match(line)
            if match:
                words = match.group(1).partition(" #")[0].strip()
                words = re.sub(r'^ARGS="(.*)"$', r"\1", words)
                if "…" not in words and not THE_READERS & set(words.split()):
                    found.append(words)
    return sorted(set(found))


@pytest.mark.parametrize("words", commands())
def test_every_command_of_the_manual_composes_and_validates(words, monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    given = [os.path.expandvars(word) for word in shlex.split(words) if not word.startswith("--")]
    for overrides in points(given):
        pipeline.check(pipeline.compose(overrides))


def points(overrides: list[str]) -> list[list[str]]:
    """Of a sweep, each point's overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = []
    for override in overrides:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            values = parsed.sweep_string_iterator()
            choices.append([f"{parsed.get_key_element()}={value}" for value in values])
        else:
            choices.append([override])
    return [list(point) for point in itertools.product(*choices)]


def test_a_stage_has_one_name_everywhere():
    for stage in pipeline.STAGES:
        assert stage in DAG
        assert stage in SECTIONS
        assert (ROOT / "tests" / f"test_{stage}.py").exists(), f"tests/test_{stage}.py"
        module = ROOT / "stages" / stage
        assert module.is_dir() or module.with_suffix(".py").exists()
        assert DAG[stage]["outs"] == [f"data/{stage}"]


def test_every_section_of_params_is_read_by_a_stage_or_by_tracking():
    read = set(itertools.chain(*(pipeline.signature(stage).sections for stage in pipeline.STAGES)))
    assert read | {"tracking", "seed"} == set(pipeline.compose())


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_dvc_gives_a_stage_the_sections_and_inputs_that_it_asks_for(stage):
    asked = pipeline.signature(stage)
    assert sorted(DAG[stage]["params"]) == sorted(asked.sections)
    options = {}
    for word in DAG[stage]["cmd"].split():
        if word.startswith("--"):
            paths = options[word[2:]] = []
        elif options:
            paths.append(word)
    # The champion is the one input that DVC does not know: __main__ takes it from the registry.
    assert set(options) == {"params", "out", *asked.inputs} - {"champion"}
    deps = DAG[stage]["deps"]
    for name in asked.inputs.keys() & options.keys():
        for path in options[name]:
            covered = path in deps or Path(path).parent.as_posix() in deps
            assert covered, f"{path} is no dep of {stage}"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("stages"))


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_the_deps_of_a_stage_cover_its_imports(stage):
    own = ROOT / "stages" / stage
    files = sorted(own.rglob("*.py")) if own.is_dir() else [own.with_suffix(".py")]
    floors = {
        ".".join(name.split(".")[1:2]) for path in files for name in imports(path) if "." in name
    }
    for floor in floors:
        place = f"stages/{floor}"
        covered = place in DAG[stage]["deps"] or f"{place}.py" in DAG[stage]["deps"]
        assert covered, f"{stage} imports {place}, which is none of its deps in dvc.yaml"


def test_the_floors_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_planted_import_of_a_sibling_breaks_the_floors(tmp_path):
    subprocess.run(["cp", "-r", ROOT / "stages", ROOT / "pyproject.toml", tmp_path], check=True)
    planted = tmp_path / "stages" / "split" / "__init__.py"
    planted.write_text(planted.read_text() + "\nfrom stages import crawl  # noqa\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "stages.split -> stages.crawl" in done.stdout


def test_the_reference_of_keys_is_what_the_code_says():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import keys
    finally:
        sys.path.pop(0)
    written = {path.name: path.read_text() for path in (ROOT / "docs/reference").glob("*.md")}
    assert written == keys.pages(), "run `make docs`"


def test_every_key_has_a_meaning():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import keys
    finally:
        sys.path.pop(0)
    for name, text in keys.pages().items():
        for row in text.splitlines():
            assert not row.endswith("|  |"), f"{name}: {row}"


def test_no_name_of_the_banned_ones_is_used():
    banned = {"utils", "helpers", "manager", "handler"}
    names = {part for path in (ROOT / "stages").rglob("*.py") for part in path.stem.split("_")}
    assert not names & banned


def test_the_inputs_that_the_dag_needs_are_committed():
    for stage in DAG.values():
        for dep in stage["deps"]:
            if dep.startswith("data/inputs/"):
                assert (ROOT / dep).exists()
