"""Plays the fault schedule: `python -m tests.faults [--only WORD …] [--outage 120] [--restarts 200] [--write]`.

With `--write` the table goes into `docs/reliability.md`, where faults that were not played keep their rows. Exit code 1
if a fault had another outcome than it should.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from streams.kafka_producer import EventProducer
from tests.faults.page import section, write_section
from tests.faults.report import Cells, cells, row, rows_of, table
from tests.faults.schedule import SCHEDULE, missing, play
from tests.faults.stage import Outcome, Unplayable
from tests.servers import Broker, kafka_kinds, new_broker


def main() -> int:
    """Plays, prints a line for each fault, and says how many went wrong."""
    arguments = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    arguments.add_argument("--only", nargs="*", default=[], help="faults whose name contains one of these")
    arguments.add_argument("--outage", type=float, default=120.0, help="seconds that what is away stays away")
    arguments.add_argument("--restarts", type=int, default=200)
    arguments.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = arguments.parse_args()
    chosen = [fault for fault in SCHEDULE if not options.only or any(word in fault.id for word in options.only)]
    results: dict[str, Cells] = {}
    failed = 0
    began = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-faults-")))
        kind = kafka_kinds()[-1]
        server = stack.enter_context(new_broker(kind, directory / "shared"))
        producer = stack.enter_context(EventProducer(bootstrap_servers=server.address, linger_ms=0))
        broker = Broker(kind, server, producer)
        for number, fault in enumerate(chosen):
            outcome: Outcome | str
            try:
                if why := missing(fault):
                    raise Unplayable(why)
                where = directory / f"{number}"
                outcome = play(fault, where, broker, outage_s=options.outage, restarts=options.restarts)
            except Unplayable as reason:
                outcome = f"not played: {reason}"
            except Exception:  # noqa: BLE001 - the others are played all the same
                failed += 1
                traceback.print_exc()
                outcome = "**FAILED**"
            results[fault.name] = cells(fault, outcome)
            print(row(fault.group, results[fault.name]), flush=True)
    print(f"{len(results)} faults played, {failed} failed, in {time.monotonic() - began:.0f} s")
    if options.write:
        found = {**rows_of(section("faults").splitlines()), **results}
        when = datetime.now(UTC).strftime("%Y-%m-%d")
        away = f"what was away was away for {options.outage:.0f} s"
        stated = f"Run of {when} on {os.cpu_count()} cores ({platform.machine()}), {kind} Kafka; {away}."
        write_section("faults", f"{stated}\n\n{table(found)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
