"""Whatever is wrong, from a typing error in the configuration to a broken record: one sentence that says what to do, or
a dead letter, and nothing is lost."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
from kafka import KafkaAdminClient
from typer.testing import CliRunner, Result

from service.cli import app
from service.daemon import run
from service.manifest import FileEntry, Manifest
from service.sealed import FORMAT, seal, unseal
from service.state_dir import StateIdentity
from streams.dead_letters import DeadLetter
from streams.embedded import free_port
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource
from streams.simulator_messages import Message
from tests.daemon_process import Place, small_world
from tests.servers import Broker, kafka_kinds, new_broker, new_redis

pytestmark = [pytest.mark.servers, pytest.mark.slow]

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The verbs set up logging for the whole process, on the streams of a run that is over."""
    yield
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_redis("embedded", tmp_path_factory.mktemp("redis")) as server:
        yield server.address


@pytest.fixture(params=kafka_kinds())
def kafka_of_kind(request: pytest.FixtureRequest, brokers: Callable[[str], Broker]) -> Broker:
    return brokers(request.param)


@pytest.fixture
def place(brokers: Callable[[str], Broker], redis_address: str, namespace: str, tmp_path: Path) -> Place:
    """Topics without records, and a configuration without a mistake."""
    return place_on(brokers("embedded"), redis_address, namespace, tmp_path)


def place_on(broker: Broker, redis_url: str, namespace: str, directory: Path) -> Place:
    place = Place(directory / "place", namespace, broker.address, redis_url)
    place.producer = broker.producer
    place.create_topics(broker.producer, partitions=2)
    return place


@pytest.fixture(scope="module")
def learned(brokers: Callable[[str], Broker], redis_address: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose state directory has a phase; a test takes a copy of it."""
    place = place_on(brokers("embedded"), redis_address, "learned", tmp_path_factory.mktemp("learned"))
    place.send(small_world(events=300))
    assert run(place.config, once=True) == 0
    assert len(place.lines()) == 1
    return place


@pytest.fixture
def copy(learned: Place, tmp_path: Path) -> Place:
    """The same place on a copy of its state directory."""
    place = Place(tmp_path / "copy", learned.namespace, learned.broker, learned.redis_url)
    shutil.copytree(learned.state_dir, place.state_dir)
    return place


def once(place: Place) -> Result:
    """`headwater run --once`, as at a terminal."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", "--once", "-c", str(place.path)])


def refused(place: Place, *words: str) -> str:
    """Checks that `run --once` fails with one sentence that has these words, and a hint; returns it."""
    before = _files(place)
    result = once(place)
    said = [line for line in result.stderr.strip().splitlines() if not line.startswith("{")]
    assert result.exit_code == 1, result.output
    assert not isinstance(result.exception, Exception), repr(result.exception)
    assert len(said) == 1, result.stderr
    for word in words:
        assert word in said[0]
    assert _files(place) == before, "nothing of the state has changed"
    return said[0]


def _files(place: Place) -> dict[str, bytes]:
    """Content of everything that counts in the state directory."""
    return {
        str(path.relative_to(place.state_dir)): path.read_bytes()
        for path in sorted(place.state_dir.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def sentence_of(path: Path, verb: str = "run") -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [verb, "-c", str(path)])
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    return result.stderr


class TestConfiguration:
    def test_an_unknown_key_names_the_nearest_known_one(self, tmp_path: Path) -> None:
        path = tmp_path / "headwater.toml"
        path.write_text("[phase]\nmax_event = 5\n")
        assert 'unknown key "max_event" in [phase]; the nearest known one is "max_events"' in sentence_of(path)

    def test_a_wrong_type_says_what_is_expected(self, tmp_path: Path) -> None:
        path = tmp_path / "headwater.toml"
        path.write_text("[phase]\nmax_events = 'many'\n")
        assert '"max_events" in [phase] must be a whole number, not "many"' in sentence_of(path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert str(tmp_path / "none.toml") in sentence_of(tmp_path / "none.toml")

    def test_a_taken_port_is_named(self, place: Place) -> None:
        place.configure(http={"port": int(place.broker.rpartition(":")[2])})
        assert "cannot listen" in once(place).stderr


class TestServers:
    def test_a_broker_that_is_away(self, place: Place) -> None:
        address = f"127.0.0.1:{free_port()}"
        place.configure(kafka={"bootstrap_servers": address})
        result = once(place)
        assert result.exit_code == 1
        assert address in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr

    def test_a_redis_that_is_away(self, place: Place) -> None:
        port = free_port()
        place.configure(redis={"url": f"redis://127.0.0.1:{port}/0"})
        result = once(place)
        assert result.exit_code == 1
        assert str(port) in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize("kind", ["interactions", "items"])
    def test_a_topic_that_does_not_exist(self, kafka_of_kind: Broker, place: Place, kind: str) -> None:
        place.configure(kafka={"bootstrap_servers": kafka_of_kind.address, f"{kind}_topic": "nobody-made-me"})
        for other in {"interactions", "items", "users"} - {kind}:
            kafka_of_kind.producer.ensure_topics([place.topics[other]])
        result = once(place)
        assert result.exit_code == 1
        assert "nobody-made-me" in result.stderr
        assert "Traceback" not in result.stderr


class TestState:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"modalities": {"image": 32, "text": 48, "audio": 16}}, ["[model.modalities] text", "48", "24"]),
            ({"frames": {"audio": 3}}, ["[model.frames] audio is 3", "without it"]),
            ({"user_features": {"profile": 13}}, ["[model.user_features] profile", "13", "12"]),
            ({"dim": 16}, ["dim", "16", "8"]),
            ({"history": 9}, ["history", "9", "8"]),
            ({"head": "mlp"}, ["head", "mlp", "dot"]),
            ({"fusion": "sum"}, ["fusion", "sum", "gated"]),
            ({"objective": "click"}, ["objective", "click", "ranking"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_model_that_is_not_the_checkpoints(
        self, copy: Place, change: Mapping[str, Any], words: list[str]
    ) -> None:
        copy.configure(model=change)
        assert "state_dir" in refused(copy, *words)

    def test_of_another_namespace(self, copy: Place) -> None:
        copy.configure(namespace="somebody-else")
        refused(copy, "'learned'", "'somebody-else'", "state_dir")

    @pytest.mark.parametrize(("number", "whose"), [(FORMAT + 1, "newer"), (FORMAT - 1, "older")])
    def test_of_another_format(self, copy: Place, number: int, whose: str) -> None:
        path = copy.state_dir / "identity.json"
        identity = unseal(path.read_bytes(), StateIdentity, path)
        path.write_bytes(seal(msgspec.structs.replace(identity, format=number)))
        refused(copy, f"format {number}", f"{whose} Headwater", "state_dir")

    def test_of_another_cluster(self, copy: Place, tmp_path: Path) -> None:
        with new_broker("embedded", tmp_path / "kafka") as other:
            copy.configure(kafka={"bootstrap_servers": other.address})
            with EventProducer(bootstrap_servers=other.address) as producer:
                copy.create_topics(producer)
            refused(copy, "belong to Kafka cluster", "bootstrap_servers", "state_dir")

    def test_of_a_topic_that_was_made_anew(
        self, brokers: Callable[[str], Broker], redis_address: str, namespace: str, tmp_path: Path
    ) -> None:
        place = place_on(brokers("embedded"), redis_address, namespace, tmp_path)
        assert run(place.config, once=True) == 0
        with KafkaAdminClient(bootstrap_servers=place.broker) as admin:
            admin.delete_topics([place.topics["users"]])
        with EventProducer(bootstrap_servers=place.broker) as producer:
            place.create_topics(producer, partitions=2)
        refused(place, place.topics["users"], "made anew", "state_dir")

    def test_that_others_can_write(self, copy: Place) -> None:
        (copy.state_dir / "checkpoints").chmod(0o777)
        refused(copy, "checkpoints can be written by other users (mode 0777)", "chmod -R go-w")

    def test_with_a_checkpoint_that_is_a_program(self, copy: Place, tmp_path: Path) -> None:
        weights, ran = next(copy.state_dir.rglob("weights.pt")), tmp_path / "ran"
        with zipfile.ZipFile(weights) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        program = b"cposix\nsystem\n(S'touch %s'\ntR." % str(ran).encode()
        with zipfile.ZipFile(weights, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, program if name.endswith("data.pkl") else part)
        path = weights.with_name("manifest.json")
        manifest = unseal(path.read_bytes(), Manifest, path)
        entry = FileEntry(hashlib.sha256(weights.read_bytes()).hexdigest(), weights.stat().st_size)
        path.write_bytes(seal(msgspec.structs.replace(manifest, files={weights.name: entry})))
        refused(copy, "weights.pt is damaged", "cannot be used")
        assert not ran.exists()
        pickle.loads(program)
        assert ran.exists(), "it is a program"

    def test_from_is_refused_where_there_are_offsets(self, copy: Place) -> None:
        arguments = ["run", "--once", "--from", "latest", "-c", str(copy.path)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
        assert result.exit_code == 1
        assert "--from" in result.stderr.splitlines()[-1]


GOOD = {"user_id": "u1", "item_id": "i1", "action": "click", "time": 1_735_700_000.0}
NAN_VECTOR = base64.b64encode(np.array([np.nan] * 24, "<f4").tobytes()).decode()
LONG_TEXT = 5_000_000


def interaction(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not None}).encode()


BAD: list[tuple[str, bytes | None, str]] = [
    ("interactions", b"not json", "not_json"),
    ("interactions", b"", "not_json"),
    ("interactions", None, "no_value"),
    ("interactions", b"[1, 2]", "wrong_type"),
    ("interactions", b'{"user_id": "\xff\xfe"}', "not_utf8"),
    ("interactions", interaction(item_id=None), "missing_field"),
    ("interactions", interaction(time=None), "missing_field"),
    ("interactions", interaction(action=7), "wrong_type"),
    ("interactions", interaction(value=float("nan")), "not_finite"),
    ("interactions", interaction(time=3_600.0), "absurd_time"),
    ("interactions", interaction(time=time.time() + 366 * DAY_S), "absurd_time"),
    ("interactions", interaction(time="2026-01-02 at noon"), "bad_time"),
    ("interactions", interaction(user_id="u" * 10_000), "bad_id"),
    ("items", json.dumps({"item_id": "i1", "features": {"text": [0.5] * 23}}).encode(), "wrong_length"),
    ("items", json.dumps({"item_id": "i1", "features": {"text": NAN_VECTOR}}).encode(), "not_finite"),
    ("items", json.dumps({"item_id": "i1", "text": "x" * LONG_TEXT}).encode(), "too_large"),
    ("users", json.dumps({"user_id": "u1", "features": {"profile": "not base64!"}}).encode(), "not_base64"),
]


def test_bad_records_become_dead_letters_and_the_rest_is_learned(
    kafka_of_kind: Broker, redis_address: str, namespace: str, tmp_path: Path
) -> None:
    place = Place(tmp_path / "place", namespace, kafka_of_kind.address, redis_address)
    with KafkaAdminClient(bootstrap_servers=place.broker) as admin:
        large = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "6000000"}}
        admin.create_topics({place.topics["items"]: large}, wait_for_metadata=True)
    place.create_topics(kafka_of_kind.producer, partitions=1)
    with EventProducer(bootstrap_servers=place.broker, max_request_bytes=6_000_000, compression=None) as producer:
        stream = small_world(events=200)
        place.send(stream[: len(stream) // 2], producer)
        for kind, value, _reason in BAD:
            producer.send(place.topics[kind], b"a key", value)
        place.send(stream[len(stream) // 2 :], producer)
    assert run(place.config, once=True) == 0

    (line,) = place.lines()
    assert line.decision == "promoted"
    assert line.events == 200
    assert line.rejected == sum(kind == "interactions" for kind, *_ in BAD)
    assert line.items == sum(message.kind == "items" for message in stream)
    assert line.users == sum(message.kind == "users" for message in stream)
    assert line.end[place.topics["interactions"]] == {0: line.events + line.rejected}

    found = letters(place)
    assert len(found) == len(BAD)
    for kind, value, reason in BAD:
        letter = found.pop((kind, value if value is None or len(value) < LONG_TEXT else None))
        assert letter.reason == reason
        assert letter.detail.endswith(".")
        assert letter.record.topic == place.topics[kind]
        assert letter.record.partition == 0
        assert letter.record.key == b"a key"
        if letter.truncated_from is not None:
            assert value is not None
            assert letter.truncated_from == len(value)
            assert letter.record.value
            assert value.startswith(letter.record.value)
    with place.sink() as sink:
        assert sink.read(line.version or 0, "users", ["u" * 10_000]) == [None]


def letters(place: Place) -> dict[tuple[str, bytes | None], DeadLetter]:
    """Dead letters by kind of topic and raw value; None for one without, or with one that was cut."""
    kinds = {topic: kind for kind, topic in place.topics.items()}
    source = KafkaSource(bootstrap_servers=place.broker, topics=[place.topics["dead"]])
    source.assign(source.beginning())
    end, found = source.end(), {}
    while any(source.position(tp) < offset for tp, offset in end.items()):
        for record in source.poll(1.0):
            letter = DeadLetter.read(record)
            value = None if letter.truncated_from else letter.record.value
            found[kinds[letter.record.topic], value] = letter
    source.close()
    return found


def message(kind: Any, key: str, body: Mapping[str, Any]) -> Message:
    return Message(kind, key.encode(), json.dumps(body).encode(), 0.0, 0)


def test_an_item_is_learned_by_its_id_until_its_content_comes(place: Place) -> None:
    stream = small_world(events=200)
    place.send(stream)
    place.send([message("interactions", "u1", GOOD | {"item_id": "unheard of", "time": 1_735_700_000.0 + n})
                for n in range(5)])  # fmt: skip
    assert run(place.config, once=True) == 0
    first = vector(place, "unheard of")
    assert np.any(first)
    place.send([message("items", "unheard of", {"item_id": "unheard of", "features": {"text": [0.5] * 24}})])
    place.send([message("interactions", "u2", GOOD | {"user_id": "u2", "time": 1_735_700_100.0})])
    assert run(place.config, once=True) == 0
    lines = place.lines()
    assert [(line.events, line.items) for line in lines][-1] == (1, 1)
    assert sum(line.events for line in lines) == 206
    with_content = vector(place, "unheard of")
    assert not np.array_equal(first[:8], with_content[:8])


def vector(place: Place, item: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    with place.sink() as sink:
        pointer = sink.pointer()
        assert pointer is not None
        (raw,) = sink.read(pointer.version, "items", [item])
    assert raw is not None
    return np.frombuffer(raw, "<f4")


def test_a_phase_in_which_nothing_can_be_learned_is_passed(place: Place) -> None:
    place.send(small_world(events=200))
    assert run(place.config, once=True) == 0
    with place.sink() as sink:
        served = sink.pointer()
    # Nothing but a record that cannot be used …
    place.send([message("interactions", "u1", {"user_id": "u1"})])
    assert run(place.config, once=True) == 0
    # … nothing but a new item …
    place.send([message("items", "brand new", {"item_id": "brand new", "features": {"text": [0.5] * 24}})])
    assert run(place.config, once=True) == 0
    # … and nothing at all.
    assert run(place.config, once=True) == 0
    first, rejected, announced = place.lines()
    assert [line.decision for line in (first, rejected, announced)] == ["promoted", "empty", "empty"]
    assert (rejected.events, rejected.rejected, rejected.published_at) == (0, 1, None)
    assert (announced.events, announced.items) == (0, 1)
    with place.sink() as sink:
        pointer = sink.pointer()
    assert served is not None
    assert pointer is not None
    assert (pointer.version, pointer.published_at) == (served.version, served.published_at)
    assert np.any(vector(place, "brand new"))
