"""SIGKILL at every named point and at random: nothing is lost, nothing learned twice, and what is learned is that of an
uninterrupted run, bit for bit. Real processes on real servers, over four partitions.

This is the small one of `make chaos`, which kills a thousand times. How it is done: tests/chaos/chains.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from service.crash_points import POINTS
from tests.chaos import chains
from tests.chaos.arena import Reference, Servers, findings_at_the_end, findings_so_far
from tests.chaos.lives import KILLED, Death, live
from tests.chaos.planted import FAULTS
from tests.chaos.remains import Remains
from tests.servers import Broker, kafka_kinds, new_redis, redis_kinds

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(1200)]

PAIRS = list(itertools.zip_longest(kafka_kinds(), redis_kinds(), fillvalue="embedded"))
"""Both embedded servers, and both real ones where they are found."""
KILLS, SEED = 50, 12


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest, brokers: Callable[[str], Broker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    broker, redis = getattr(request, "param", PAIRS[0])
    directory = tmp_path_factory.mktemp("chaos")
    with ExitStack() as stack:
        store = stack.enter_context(new_redis(redis, directory / "redis"))
        shared = brokers(broker)
        made = Servers(shared.address, shared.producer, store.address, directory)
        stack.callback(made.close)
        yield made


@pytest.mark.parametrize("servers", PAIRS[-1:], ids="+".join, indirect=True)
def test_whatever_it_is_killed_at_it_goes_on_as_if_nothing_had_happened(servers: Servers) -> None:
    tally = chains.run(servers, kills=KILLS, seed=SEED)
    assert tally.findings == []
    assert tally.total >= KILLS
    assert set(POINTS) <= tally.kills.keys()


@pytest.fixture(scope="module")
def reference(servers: Servers) -> Reference:
    return Reference.run(servers)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_was_planted_is_caught_by_the_check_that_is_for_it(
    servers: Servers, reference: Reference, name: str
) -> None:
    fault, place, found = FAULTS[name], servers.place(reference.feed), []
    for point in fault.die_at:
        code = live(place, Death("point", point) if point else None, fault=name)
        assert code == (KILLED if point else 0)
        look = findings_so_far if point else findings_at_the_end
        found += look(servers, Remains(place), reference)
    assert fault.caught_by in {finding.check for finding in found}, found
    print(f"{name}: {', '.join(sorted({finding.check for finding in found}))}")
    for finding in found[:6]:
        print(f"  {finding.check}: {finding.text}")
