"""The quick faults of the schedule, in every run of the tests; `make faults` plays all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.page import write_section
from tests.faults.report import table
from tests.faults.schedule import SCHEDULE, missing, play
from tests.faults.stage import Fault, Outcome
from tests.servers import Broker

QUICK = [fault for fault in SCHEDULE if fault.quick]


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.id)
def test_it_recovers_by_itself_and_loses_nothing(
    fault: Fault, brokers: Callable[[str], Broker], tmp_path: Path
) -> None:
    if why := missing(fault):
        pytest.skip(why)
    broker = brokers("apache" if "apache" in fault.needs else "embedded")
    outcome = play(fault, tmp_path / "stage", broker, outage_s=4.0, restarts=3)
    assert outcome.lost == 0


def test_names_tell_faults_apart() -> None:
    ids = [fault.id for fault in SCHEDULE]
    assert len(set(ids)) == len(ids)


def test_a_run_changes_its_own_section_of_the_page_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- faults -->\nold\n<!-- end of faults -->\nkept\n")
    results: list[tuple[Fault, Outcome | str]] = [
        (SCHEDULE[0], Outcome("came back", 1.25, 0, "redis was | away: /a/b/c.toml")),
        (SCHEDULE[1], "not played: needs another server"),
    ]
    write_section("faults", table(results), page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Page\n<!-- faults -->\n")
    assert text.endswith("<!-- end of faults -->\nkept\n")
    assert "came back | 1.2 | 0 | `redis was \\| away: …/c.toml`" in text
    assert "not played: needs another server" in text
    with pytest.raises(ValueError, match="no section"):
        write_section("another", "", page)
