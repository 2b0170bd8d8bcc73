"""The parts of `headwater demo`: the stream that can be sent again, freshness from outside, and the summary."""

from __future__ import annotations

import io
import itertools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from service.config import load_config
from service.demo import DemoOptions
from service.demo_feed import Feed
from service.demo_probes import Freshness, Picker, Served, Watch
from service.demo_state import CLUSTER_ID, PARTITIONS, TOPICS, DemoDirectory
from service.demo_summary import Report, print_report, read_lookups, report, write_report
from service.demo_view import NDCG, RECALL, Picture, View, panel
from service.errors import HeadwaterError, StateError
from service.phase_log import PhaseLine
from service.state_dir import StateDirectory
from streams.embedded import EmbeddedBroker, EmbeddedRedis
from streams.events import Record
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.memory_sink import MemorySink, MemoryStore
from streams.publisher import RedisSink
from streams.redis_keys import Pointer
from streams.simulator import Simulator, Stream, World, item_id
from streams.simulator_messages import Message, messages

WORLD = World(seed=9, users=120, items=150, events=3_000, no_repeat=60, rate=500.0)
NEVER = threading.Event()


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pointer(version: int, epoch: int) -> Pointer:
    return Pointer(
        version=version,
        epoch=epoch,
        dim=2,
        buckets=4,
        items=0,
        users=0,
        default_user=bytes(8),
        published_at="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def sink() -> MemorySink:
    sink = MemorySink(MemoryStore(), namespace="demo", buckets=4)
    sink.write(1, "users", ["u1"], np.ones((1, 2), np.float32))
    sink.flip(pointer(1, sink.claim()))
    return sink


# -- freshness


def test_an_event_is_fresh_once_what_it_tells_is_served(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock)
    watch.send("item", "i1")
    watch.send("new_user", "u2")
    watch.send("user", "u1")
    clock.now += 0.25
    watch.look()
    assert watch.found.served == []
    sink.write(1, "items", ["i1"], np.ones((1, 2), np.float32))
    sink.write(1, "users", ["u1"], np.zeros((1, 2), np.float32))
    clock.now += 0.25
    watch.look()
    assert [(one.kind, one.seconds) for one in watch.found.served] == [("item", 0.5), ("user", 0.5)]
    assert watch.waiting() == 1
    watch.stop()
    assert [probe.id for probe in watch.found.missed] == ["u2"]
    assert watch.found.percentile(50, "new_user") == math.inf


def test_a_flip_leaves_returning_users_undecided_and_new_ones_not(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock)
    watch.send("user", "u1")
    watch.send("new_user", "u2")
    sink.write(2, "users", ["u1", "u2"], np.zeros((2, 2), np.float32))
    sink.flip(pointer(2, sink.claim()))
    clock.now += 1
    watch.look()
    assert watch.found.set_aside == 1
    assert [(one.id, one.across_flip) for one in watch.found.served] == [("u2", True)]


def test_what_cannot_prove_anything_is_not_watched(sink: MemorySink) -> None:
    nothing_served = Watch(MemorySink(MemoryStore(), namespace="demo"))
    nothing_served.send("item", "i1")
    watch = Watch(sink)
    watch.send("new_user", "u1")  # there already
    watch.send("user", "u9")  # not there
    assert nothing_served.waiting() == watch.waiting() == 0


def test_a_probe_is_given_up_after_the_patience(sink: MemorySink) -> None:
    clock = Clock()
    watch = Watch(sink, clock=clock, wall_clock=clock, patience_s=3.0)
    watch.send("item", "i1")
    clock.now += 3.1
    watch.look()
    assert [probe.id for probe in watch.found.missed] == ["i1"]
    assert watch.waiting() == 0


def test_a_store_that_is_away_for_a_moment_is_no_failure(sink: MemorySink) -> None:
    watch = Watch(sink)
    watch.send("item", "i1")
    sink.store.available = False
    watch.send("item", "i2")
    watch.look()
    assert watch.waiting() == 1


def test_percentiles_are_values_that_occurred() -> None:
    served = [Served(kind="item", id="", sent_at=at, seconds=at / 10, across_flip=False) for at in range(1, 101)]
    found = Freshness(served=served)
    assert found.percentile(50, "item") == 5.0
    assert found.percentile(99, "item") == 9.9
    assert math.isnan(found.percentile(50, "user"))
    assert found.during([(1.0, 10.0), (5.0, 12.0)], "item") == 12


@pytest.mark.servers
def test_freshness_is_what_a_real_redis_shows(tmp_path: Path) -> None:
    with EmbeddedRedis(directory=tmp_path) as redis, RedisSink(redis.address, namespace="demo", buckets=4) as real:
        real.flip(pointer(1, real.claim()))
        watch = Watch(real)
        watch.start()
        begun, names = time.monotonic(), [f"i{at}" for at in range(20)]
        for name in names:
            watch.send("item", name)
            real.write(1, "items", [name], np.ones((1, 2), np.float32))
        deadline = time.monotonic() + 20
        while watch.waiting() and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.stop()
        assert watch.found.missed == []
        assert sorted(one.id for one in watch.found.served) == sorted(names)
        assert 0 < max(watch.found.seconds("item")) < time.monotonic() - begun


def test_only_new_and_quiet_users_are_probes() -> None:
    picked: list[tuple[str, str]] = []

    class Watched(Watch):
        def send(self, kind: Any, id_: str) -> None:
            picked.append((kind, id_))

    picker = Picker(
        Watched(MemorySink(MemoryStore(), namespace="demo")), quiet=5, every=10, plain=lambda user: user != "u3"
    )

    def event(user: str, number: int, *, live: bool = True) -> None:
        picker(Message("interactions", user.encode(), b"", 0.0, number), live=live)

    event("u1", 0, live=False)
    event("u1", 4)  # back too soon
    event("u2", 5)
    event("u3", 6)  # has features, whose event might be what is served
    picker(Message("items", b"i7", b"", 0.0, 7), live=True)
    picker(Message("items", b"i6", b"", 0.0, 7), live=False)
    event("u1", 12)
    event("u2", 13)  # one such probe in ten events is enough
    assert picked == [("new_user", "u2"), ("item", "i7"), ("user", "u1")]


# -- the stream, sent again


class Recorder:
    """Stands where the producer stands; keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None]] = []
        self.flushed = 0

    def send(self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int | None = None) -> None:
        self.sent.append((topic, key, value))

    def flush(self) -> None:
        self.flushed = len(self.sent)


def feed(root: Path, producer: Any, world: World = WORLD, **more: Any) -> Feed:
    directory = DemoDirectory(root=root)
    progress = directory.open(world)
    simulator = Simulator(directory.world(progress, events=world.events))
    return Feed(producer=producer, simulator=simulator, directory=directory, progress=progress, **more)


def everything(world: World = WORLD) -> list[tuple[str, bytes | None, bytes | None]]:
    return [(m.kind, m.key, m.value) for m in messages(Simulator(world))]


def test_backlog_and_stream_together_are_the_whole_stream(tmp_path: Path) -> None:
    recorder, clock = Recorder(), itertools.count(step=0.5)
    sending = feed(tmp_path, recorder, clock=lambda: next(clock))
    sending.burst(1_000)
    assert recorder.flushed == len(recorder.sent)
    assert sending.sent == 1_000
    sending.stream(WORLD.events, rate=1_000.0, stopping=NEVER)
    assert recorder.sent == everything()
    progress = DemoDirectory(root=tmp_path).open(WORLD)
    assert (progress.sent, progress.checked) == (WORLD.events, WORLD.events)


def test_the_stream_keeps_its_rate_and_stops_when_told(tmp_path: Path) -> None:
    recorder, clock = Recorder(), Clock()
    sending = feed(tmp_path, recorder, clock=clock)
    sending.burst(100)
    stopping = threading.Event()
    counts: list[int] = []

    class Ticks(threading.Event):
        def is_set(self) -> bool:
            return stopping.is_set()

        def wait(self, timeout: float | None = None) -> bool:
            counts.append(sending.sent)
            clock.now += 0.125  # exact in binary
            if len(counts) == 5:
                stopping.set()
            return False

    sending.stream(WORLD.events, rate=160.0, stopping=Ticks())
    assert counts == [101, 121, 141, 161, 181]


def test_an_interrupted_demo_sends_the_same_again_and_at_least_as_much(tmp_path: Path) -> None:
    first = Recorder()
    sending = feed(tmp_path, first)
    sending.burst(700)
    directory = DemoDirectory(root=tmp_path)
    progress = directory.open(WORLD)
    assert progress.sent == 700

    second = Recorder()
    again = feed(tmp_path, second, replace(WORLD, events=4_000, start=5.0))
    again.burst(progress.sent)
    assert second.sent == first.sent, "laws of the first start hold, also its clock"


def test_a_stream_that_differs_from_what_was_learned_is_refused(tmp_path: Path) -> None:
    feed(tmp_path, Recorder()).burst(700)
    directory = DemoDirectory(root=tmp_path)
    progress = directory.open(WORLD)
    directory.write_progress(msgspec.structs.replace(progress, digest=progress.digest ^ 1))
    with pytest.raises(StateError, match="another stream"):
        feed(tmp_path, Recorder()).burst(700)


def test_a_directory_of_another_world_is_refused(tmp_path: Path) -> None:
    DemoDirectory(root=tmp_path).open(WORLD)
    with pytest.raises(StateError, match="another seed and users"):
        DemoDirectory(root=tmp_path).open(World(seed=10, users=121, items=150, no_repeat=60))
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        DemoDirectory(root=tmp_path).open(WORLD)
    with pytest.raises(HeadwaterError, match="1,000 events"):
        DemoOptions(events=10)


@pytest.mark.servers
def test_the_same_seed_gives_the_same_offsets_on_the_broker(tmp_path: Path) -> None:
    logs = []
    for run in range(2):
        with EmbeddedBroker(directory=tmp_path / f"broker{run}", cluster_id=CLUSTER_ID) as broker:
            with EventProducer(bootstrap_servers=broker.address, linger_ms=5) as producer:
                producer.ensure_topics(TOPICS.values(), partitions=PARTITIONS, compacted=["items", "users"])
                sending = feed(tmp_path / "state", producer)
                sending.burst(1_500)
                if run == 0:
                    sending.stream(WORLD.events, rate=100_000.0, stopping=NEVER)
                else:
                    sending.burst(WORLD.events)
            source = KafkaSource(bootstrap_servers=broker.address, topics=list(TOPICS.values()))
            try:
                assert source.identity().cluster_id == CLUSTER_ID
                logs.append({(r.topic, r.partition, r.offset): (r.key, r.value) for r in _read_all(source)})
            finally:
                source.close()
    assert logs[0] == logs[1]
    interactions = [value for (topic, _, _), (_, value) in sorted(logs[0].items()) if topic == "interactions"]
    numbers = [msgspec.json.decode(value or b"")["event_id"] for value in interactions]
    assert numbers == [f"e{n}" for n in range(WORLD.events)], "an interaction's offset is its event's number"


def test_the_state_accepts_the_next_embedded_broker(tmp_path: Path) -> None:
    directory = DemoDirectory(root=tmp_path)
    directory.open(WORLD)
    with StateDirectory.open(tmp_path, "demo") as state:
        state.bind(CLUSTER_ID, {"interactions": "one", "items": "two"})
    directory.adopt_topics()
    with StateDirectory.open(tmp_path, "demo") as state:
        state.bind(CLUSTER_ID, {"interactions": "three", "items": "four"})
        assert state.identity.topic_ids == {"interactions": "three", "items": "four"}


def test_the_daemons_configuration_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = DemoDirectory(root=tmp_path / 'a "quoted" place')
    directory.open(WORLD)
    directory.write_config(broker="127.0.0.1:1234", redis="redis://127.0.0.1:5/0", http_port=77, seed=9, threads=1)
    config = load_config(directory.config)
    assert config.state_dir == directory.root.absolute()
    assert (config.namespace, config.http.port, config.seed) == ("demo", 77, 9)
    assert config.kafka.users_topic == "users"
    assert config.model.modalities == {"image": 32, "text": 24, "audio": 16}


# -- what is shown


def line(
    phase: int, *, size: int = 500, decision: Any = "promoted", metrics: Mapping[str, float] = MappingProxyType({})
) -> PhaseLine:
    span = {"interactions": {0: (phase - 1) * size}}, {"interactions": {0: phase * size}}
    return PhaseLine(
        phase=phase,
        version=phase,
        decision=decision,
        reason="",
        start=span[0],
        end=span[1],
        events=size,
        duplicates=0,
        rejected=0,
        skipped=0,
        lost=0,
        late=0,
        items=5,
        users=3,
        watermark=None,
        opened_at=10.0 * phase,
        closed_at=10.0 * phase + 1,
        published_at=10.0 * phase + 5,
        metrics=metrics,
        stages={"learn": 3.0, "publish": 1.0},
    )


class Knowing:
    """Answers as a perfect daemon would."""

    def __init__(self, simulator: Simulator, stream: Stream) -> None:
        self.simulator, self.stream = simulator, stream

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        user = int(user_id[1:])
        utility = self.simulator.oracle.utilities(int(self.stream.number[-1]), np.array([user]))[0].copy()
        utility[self.stream.item[self.stream.user == user]] = -np.inf
        return [{"item_id": item_id(int(i)), "score": float(utility[i])} for i in np.argsort(-utility)[:k]]

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        return [{"item_id": f"i{i}", "score": 1.0} for i in range(1, k + 1)]


@pytest.fixture(scope="module")
def summary() -> tuple[Simulator, Report]:
    simulator = Simulator(WORLD)
    stream = simulator.run()
    lines = [
        line(1),
        *(line(n, metrics={RECALL: 0.2, NDCG: 0.1 * n, "ranked": 10.0 * n}) for n in (2, 3, 4)),
        line(5, decision="refused"),
    ]
    found = Freshness(
        served=[Served(kind="item", id="i1", sent_at=22.0, seconds=0.05, across_flip=False)], missed=[], set_aside=2
    )
    result = report(simulator=simulator, stream=stream, lines=lines, first=1, freshness=found, seconds=60.0)
    result.lookups = read_lookups(Knowing(simulator, stream), simulator, stream)
    return simulator, result


def test_the_summary_compares_on_the_same_events(summary: tuple[Simulator, Report]) -> None:
    _, result = summary
    assert (result.phases, result.promoted, result.events) == (4, 3, 2_000)
    assert result.events_per_second == pytest.approx(2_000 / 35)
    assert result.measured == (500, 2_000)
    by_name = {row.name: row for row in result.quality}
    assert by_name["Headwater"].ndcg == pytest.approx((0.2 * 20 + 0.3 * 30 + 0.4 * 40) / 90)
    assert math.isnan(by_name["Headwater"].cold_recall)
    best = by_name["best possible"]
    others = [row.ndcg for row in result.quality if row.name not in ("Headwater", best.name)]
    assert len(others) == 3
    assert best.ndcg > max(others)
    (item, *_) = result.freshness
    assert (item.count, item.p50, item.learning) == (1, 0.05, 1)


def test_lookups_are_readable_and_say_how_true_they_are(summary: tuple[Simulator, Report]) -> None:
    simulator, result = summary
    user, item, newest = result.lookups
    assert user.rows[2].endswith(f"number 1 of {user.rows[2].rsplit(' ', 1)[1]}")
    assert user.rows[6].startswith("5. ")
    assert simulator.catalogue.titles[1] in item.rows[0]
    assert simulator.catalogue.titles[WORLD.items_at(WORLD.events - 1) - 1] in newest.title


def test_the_summary_can_be_read_by_people_and_programs(summary: tuple[Simulator, Report], tmp_path: Path) -> None:
    _, result = summary
    console = Console(file=io.StringIO(), width=120)
    print_report(console, result)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2,000 events learned in 4 phases, 3 versions promoted" in text
    assert "50 ms" in text
    assert "Headwater" in text
    write_report(tmp_path / "report.json", result)
    decoded = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert decoded["freshness"][0]["p50"] == 0.05
    assert decoded["freshness"][1]["p50"] is None


def test_without_a_terminal_each_phase_and_stage_is_a_line_once() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    with View(console) as view:
        for count in (0, 1, 1, 3):
            view.show(picture([line(n, metrics={RECALL: 0.25}) for n in range(1, count + 1)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("learning\n") == 1
    assert [text.count(f"phase {n}: version {n} promoted, 500 events") for n in (1, 2, 3)] == [1, 1, 1]
    assert "recall@20 0.250, NDCG@20 –" in text


def test_on_a_terminal_there_is_one_panel() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with View(console) as view:
        view.show(picture([line(n) for n in range(1, 20)]))
    console.print(panel(picture([line(1)])))
    assert "versions promoted" in console.file.getvalue()  # type: ignore[attr-defined]


def picture(lines: Sequence[PhaseLine]) -> Picture:
    return Picture(
        stage="learning", total=5_000, sent=1_000, lines=lines, first=0, freshness=Freshness(), elapsed_s=12.0
    )


def _read_all(source: KafkaSource) -> list[Record]:
    source.assign(source.beginning())
    tps = list(source.end())
    records: list[Record] = []
    while not all(source.caught_up(tp) for tp in tps):
        records += source.poll(0.5)
    return records
