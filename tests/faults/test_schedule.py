"""The quick faults of the schedule, in every run of the tests; `make faults` plays all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.page import section, write_section
from tests.faults.report import cells, rows_of, table
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
    for names in ([fault.id for fault in SCHEDULE], [fault.name for fault in SCHEDULE]):
        assert len(set(names)) == len(names)


def test_a_run_changes_its_own_rows_of_its_section_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- faults -->\n<!-- end of faults -->\nkept\n")
    first, second, *_ = SCHEDULE
    outcome = Outcome("came back", 1.25, 0, "redis was | away: /a/b/c.toml")
    found = {first.name: cells(first, outcome), second.name: cells(second, "not played: needs root")}
    write_section("faults", table(found), page)
    assert rows_of(section("faults", page).splitlines()) == found
    again = {second.name: cells(second, Outcome("stopped", None, 3, "no"))}
    write_section("faults", table({**rows_of(section("faults", page).splitlines()), **again}), page)
    text = page.read_text()
    assert text.startswith("# Page\n<!-- faults -->\n")
    assert text.endswith("<!-- end of faults -->\nkept\n")
    assert f"| **Redis** | {first.name} | came back | 1.2 | 0 | `redis was \\| away: …/c.toml` |" in text
    assert f"|  | {second.name} | stopped | stops | 3 | `no` |" in text
    assert "not played" not in text
    with pytest.raises(ValueError, match="no section"):
        write_section("another", "", page)
