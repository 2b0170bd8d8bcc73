"""What tests of the benchmarks can ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stream import Stream
from tests.unit.benchmarks.samples import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of events, as the benchmarks read them."""
    return write_folder(tmp_path)


@pytest.fixture
def stream(folder: Path) -> Stream:
    """The same, read."""
    return Stream.of_folder(folder)
