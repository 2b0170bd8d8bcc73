"""The stream of `headwater demo`, which can be sent again, and the directory that remembers how far it got."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.config import load_config
from service.demo import DemoOptions
from service.demo_feed import Feed
from service.demo_state import CLUSTER_ID, PARTITIONS, TOPICS, DemoDirectory
from service.errors import HeadwaterError, StateError
from service.sealed import FORMAT, seal, unseal
from service.state_dir import Layout, StateDirectory, StateIdentity
from streams.embedded import EmbeddedBroker
from streams.events import Record
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.simulator import Simulator, World
from streams.simulator_messages import messages

WORLD = World(seed=9, users=120, items=150, events=3_000, no_repeat=60, rate=500.0)
NEVER = threading.Event()


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
    recorder, now = Recorder(), 100.0
    sending = feed(tmp_path, recorder, clock=lambda: now)
    sending.burst(100)
    stopping = threading.Event()
    counts: list[int] = []

    class Ticks(threading.Event):
        def is_set(self) -> bool:
            return stopping.is_set()

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            counts.append(sending.sent)
            now += 0.125  # exact in binary
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


def test_a_directory_of_another_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    DemoDirectory(root=tmp_path).open(WORLD)
    layout = Layout(tmp_path)
    identity = unseal(layout.identity.read_bytes(), StateIdentity, layout.identity)
    layout.identity.write_bytes(seal(msgspec.structs.replace(identity, format=FORMAT - 1)))
    with pytest.raises(StateError, match="another release") as refused:
        DemoDirectory(root=tmp_path).open(WORLD)
    assert "remove this one" in str(refused.value.hint)


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


def _read_all(source: KafkaSource) -> list[Record]:
    source.assign(source.beginning())
    tps = list(source.end())
    records: list[Record] = []
    while not all(source.caught_up(tp) for tp in tps):
        records += source.poll(0.5)
    return records
