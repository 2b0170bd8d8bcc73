"""The daemon runs whole under the documented Redis rights, a reader under its own; over TLS with passwords; and what it
writes anywhere never holds a secret."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from service.config import load_config, read_secret
from service.connections import kafka_security, redis_options
from streams.embedded import EmbeddedRedis, free_port
from streams.kafka_producer import EventProducer
from streams.publisher import RedisSink
from streams.reader import Reader
from streams.simulator_messages import Message
from streams.sink_types import SinkRefused
from tests.daemon_process import DaemonProcess, Place, small_world
from tests.integration.test_redis_refusals import rights
from tests.servers import ApacheKafka, Broker, kafka_kinds, new_redis, redis_kinds
from tests.tls import kafka_settings, make_certificate, redis_settings

pytestmark = [pytest.mark.servers, pytest.mark.slow]

ADMIN = "an admin of the test"
EVENTS = 600


def message(kind: Any, key: str, body: dict[str, Any] | None) -> Message:
    return Message(kind, key.encode(), b"" if body is None else json.dumps(body).encode(), 0.0, 0)


def let_in(server: EmbeddedRedis, namespace: str, password: str = "secret") -> Any:
    """Sets the documented rights, and turns the default user off; returns an administrator."""
    first: Any = redis.Redis.from_url(server.address)
    first.execute_command("ACL", "SETUSER", "admin", "on", f">{ADMIN}", "~*", "&*", "+@all")
    first.close()
    admin: Any = redis.Redis.from_url(server.address, username="admin", password=ADMIN)
    for user in ("headwater", "ranking"):
        line = [part.replace("headwater:", f"{namespace}:").replace(">secret", f">{password}") for part in rights(user)]
        admin.execute_command("ACL", "SETUSER", user, *line)
    admin.execute_command("ACL", "SETUSER", "default", "off")
    return admin


@pytest.mark.parametrize("kind", redis_kinds())
def test_the_daemon_and_a_reader_run_whole_under_the_documented_rights(
    kind: str, brokers: Callable[[str], Broker], namespace: str, tmp_path: Path, start: Callable[..., DaemonProcess]
) -> None:
    with new_redis(kind, tmp_path / "redis") as server:
        admin = let_in(server, namespace)
        broker = brokers("embedded")
        place = Place(tmp_path / "place", namespace, broker.address, server.address)
        place.producer = broker.producer
        (tmp_path / "password").write_text("secret\n")
        place.configure(redis={"username": "headwater", "password_file": str(tmp_path / "password")})
        place.create_topics(broker.producer, partitions=2)
        place.send(small_world(events=EVENTS))
        daemon = start(place)
        daemon.wait_learned(EVENTS)
        daemon.wait_ready()

        url = server.address.replace("//", "//ranking:secret@")
        with Reader(url, namespace=namespace) as reader:
            # publish and flip
            served = reader.pointer().version
            assert served == place.lines()[-1].version
            with reader.pinned() as view:
                found = dict.fromkeys(one for ids, _ in view.candidates() for one in ids)
                assert len(found) == view.pointer.items > 0
                assert len(view.score("u1", list(found))[0]) == len(found)
            # the fast path
            place.send([message("items", "fresh", {"item_id": "fresh", "features": {"text": [0.5] * 24}})])
            daemon.wait_until("the new item in Redis", lambda: _has(reader, "fresh"))
            # rollback, told by pub/sub
            told, stop = list[int](), threading.Event()
            thread = threading.Thread(
                target=reader.follow, args=(lambda pointer: told.append(pointer.version), stop), kwargs={"poll_s": 5.0}
            )
            thread.start()
            code, answer = daemon.post("/admin/rollback", {})
            assert code == 200, answer
            daemon.wait_until("the flip to be told", lambda: answer["version"] in told)
            stop.set()
            thread.join()
            assert reader.pointer().version == answer["version"] > served
            # deletion
            place.send([message("items", "fresh", {"item_id": "fresh", "deleted": True})])
            daemon.wait_until("the deletion in Redis", lambda: not _has(reader, "fresh"))
        place.configure(redis={"username": "headwater"})
        doctor = place.verb("doctor")
        assert "FAIL" not in doctor.stdout, doctor.stdout
        assert daemon.terminate() == 0
        denied = [entry["object"] for entry in admin.acl_log()]
        assert denied == [], "nothing was asked for that the rights do not hold"

        # and no more than that
        with RedisSink(url, namespace=namespace) as trespasser, pytest.raises(SinkRefused, match="lacks a right"):
            trespasser.claim()
        assert admin.acl_log()
        admin.close()


def _has(reader: Reader, item: str) -> bool:
    with reader.pinned() as view:
        return view.item(item) is not None


SECRETS = {
    "kafka": "kafka-pa55word-Qx81",
    "redis": "redis-pa55word-Zy72",
    "token": "http-t0ken-Wk63",
    "key": "user-1d-key-Vj54-of-some-length",
    "url": "ur1-pa55word-Um45",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.skipif("apache" not in kafka_kinds(), reason="needs Apache Kafka: set HEADWATER_TEST_KAFKA")
@pytest.mark.skipif("debian" not in redis_kinds(), reason="needs Debian's redis-server")
def test_over_tls_with_passwords_and_no_secret_is_written_anywhere(
    certificate: Path, namespace: str, tmp_path: Path, start: Callable[..., DaemonProcess]
) -> None:
    kafka_port, tls_port = free_port(consecutive=2), free_port()
    of_kafka = kafka_settings(kafka_port, certificate, {"admin": "an admin", "headwater": SECRETS["kafka"]})
    secrets = {name: tmp_path / f"{name}.secret" for name in SECRETS}
    for name, path in secrets.items():
        path.write_text(SECRETS[name] + "\n")
    with (
        ApacheKafka(directory=tmp_path / "kafka", port=kafka_port, settings=of_kafka) as broker,
        new_redis("debian", tmp_path / "redis", settings=redis_settings(tls_port, certificate)) as server,
    ):
        let_in(server, namespace, SECRETS["redis"]).close()
        place = Place(tmp_path / "place", namespace, broker.address, f"rediss://localhost:{tls_port}/0")
        ca = str(certificate / "cert.pem")
        config = place.configure(
            kafka={
                "security_protocol": "SASL_SSL", "security_sasl_mechanism": "PLAIN", "security_username": "headwater",
                "security_password_file": str(secrets["kafka"]), "security_ca_file": ca,
            },
            redis={"username": "headwater", "password_file": str(secrets["redis"]), "ca_file": ca},
            events={"user_id_key_file": str(secrets["key"])},
            log={"level": "debug"},
        )  # fmt: skip
        (place.directory / "token").write_text(SECRETS["token"])
        place.tables["http"]["token_file"] = str(secrets["token"])
        place.configure()
        with EventProducer(bootstrap_servers=broker.address, security=kafka_security(config)) as producer:
            place.create_topics(producer, partitions=2)
            place.send(small_world(events=EVENTS), producer)
            place.send([message("interactions", "u1", {"user_id": "u1"})], producer)  # a dead letter
        daemon = start(place)
        daemon.wait_learned(EVENTS)
        daemon.wait_ready()
        said = [repr(daemon.get(path)) for path in ("/metrics", "/status", "/readyz", "/recommend/u1", "/healthz")]
        said += [repr(daemon.post("/admin/pause", {}, token)) for token in (SECRETS["token"], "wrong", None)]
        assert "200" in said[5]
        assert "401" in said[6]
        assert daemon.terminate() == 0
        for verb in (("doctor",), ("lookup", "users", "u1")):
            done = place.verb(*verb)
            assert done.returncode == 0, (verb, done.stdout, done.stderr)
            said += [done.stdout, done.stderr]

        # and where everything goes wrong
        for name, changed in (
            ("kafka", {"kafka": {"security_username": "nobody"}}),
            ("redis", {"redis": {"username": "x"}}),
        ):
            before = json.loads(json.dumps(place.tables))
            place.configure(**changed)
            done = place.verb("run", "--once")
            assert done.returncode == 1, name
            assert "Traceback" not in done.stderr
            said += [done.stdout, done.stderr]
            place.tables = before
        place.configure(redis={"url": f"redis://me:{SECRETS['url']}@127.0.0.1:{free_port()}/0?client_name=x"})
        for verb in (("doctor",), ("lookup", "items", "i1")):
            done = place.verb(*verb)
            assert done.returncode == 1
            said += [done.stdout, done.stderr]
        said.append(repr(place.config))

    hidden = [*secrets.values(), place.path]
    written = {
        str(path): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path not in hidden and "kafka" not in path.parts and "redis" not in path.parts
    }
    assert any(path.endswith("daemon.log") for path in written), sorted(written)
    written["answers and errors"] = "\n".join(said).encode()
    del written[str(place.directory / "token")]
    leaks = [(path, name) for path, data in written.items() for name in SECRETS if SECRETS[name].encode() in data]
    assert leaks == []


def test_the_search_for_secrets_would_find_one(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRETS["redis"])
    secret = read_secret(path)
    assert isinstance(secret, SecretStr)
    assert SECRETS["redis"] not in repr(secret)
    (tmp_path / "headwater.toml").write_text(f'[redis]\npassword_file = "{path}"\n')
    options = redis_options(load_config(tmp_path / "headwater.toml"))
    assert SECRETS["redis"] not in repr(options)
    assert options["password"]() == SECRETS["redis"]
