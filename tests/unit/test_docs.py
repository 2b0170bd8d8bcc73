"""The documentation as a reader meets it: links lead somewhere, commands and files exist, examples load."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from service.cli import app
from service.config import load_config
from streams.user_ids import keyed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code blocks, in which brackets mean something else."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def links(path: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [target for target in targets if not target.startswith(("http:", "https:"))]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        waiting += [
            (page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith("#")
        ]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:streams|models|service|tests|deploy|benchmarks|docs)/[\w./-]+)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_verbs_that_are_named_exist() -> None:
    command: Any = get_command(app)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        # In code only: in prose "headwater" is followed by any word.
        named = set(re.findall(r"(?:`|\bbin/|^ {4})headwater ([a-z]+)\b(?!/)", text, re.MULTILINE))
        assert named <= set(command.commands), page_id(page)


def test_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`| {4})make ([a-z]+)", page.read_text(encoding="utf-8")))
        assert named <= targets, page_id(page)


def test_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", listed, re.MULTILINE)) == phony - {"help", "lint"}


def test_the_fast_tests_leave_out_every_marker_that_pytest_knows() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = {line.partition(":")[0] for line in settings["markers"]}
    fast = re.findall(r"^FAST := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert {part.removeprefix("not ") for part in fast.split(" and ")} == markers


def test_the_benchmarks_that_make_runs_exist() -> None:
    named = re.findall(r"^BENCHMARKS \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert [name for name in named.split() if not (ROOT / "benchmarks" / f"{name}.py").exists()] == []


def test_configurations_in_the_documentation_load(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for language, text in FENCED.findall(page.read_text(encoding="utf-8")):
            if language == "toml":
                path = tmp_path / "headwater.toml"
                path.write_text(text, encoding="utf-8")
                load_config(path)
                found += 1
    assert found


def test_decisions_are_numbered_short_and_whole() -> None:
    assert [path.name[:3] for path in DECISIONS] == [f"{number:03}" for number in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        assert re.match(rf"# {path.name[:3]} \w", text), path.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Choice", "Measured", "Costs"]
        assert len([line for line in text.splitlines() if line]) <= 14, path.name


def test_the_changelog_has_a_place_for_what_is_not_released() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_only_ci_knows_what_lies_beside_the_project() -> None:
    beside = re.compile(r"\bshared" + r"/(?:kafka|docs|data|judge)\b")
    folders = ("streams", "models", "service", "tests", "benchmarks", "deploy", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    texts = {path: path.read_bytes().decode(errors="ignore") for path in files if path.suffix != ".pyc"}
    assert [page_id(path) for path, text in texts.items() if beside.search(text)] == []
    assert beside.search((ROOT / ".ci" / "run").read_text(encoding="utf-8"))


def test_rights_are_the_same_wherever_they_are_written() -> None:
    """`docs/redis.md` is the one that servers are set up by in the tests."""
    by_page = {
        page: re.findall(r"^ +(ACL SETUSER .*)$", page.read_text(encoding="utf-8"), re.MULTILINE) for page in PAGES
    }
    contract = by_page[DOCS / "redis.md"]
    assert len(contract) == 2
    assert {page.name for page, lines in by_page.items() if lines} >= {"redis.md", "security.md"}
    assert all(line in contract for lines in by_page.values() for line in lines)


def test_the_documented_hash_is_the_one_that_is_computed() -> None:
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    found = re.search(r"With the key `([^`]+)`, `([^`]+)` becomes\s+`([0-9a-f]{32})`", text)
    assert found is not None
    assert keyed(found[1].encode())(found[2]) == found[3]
