"""Readers see what the sink wrote: the class a Python service uses, and the plain scripts in `docs/readers`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
import redis

from streams.publisher import RedisSink
from streams.reader import NothingPublished, Reader, VersionExpired, View
from streams.redis_keys import Floats, Pointer, pack_head, vector_bytes
from streams.sink_types import SinkRefused

READERS = Path(__file__).parents[2] / "docs" / "readers"
D, P, BUCKETS = 4, 3, 8
ITEMS = [f"item-{n}" for n in range(60)] + ["カフェ", "with blank"]
USERS = [f"user-{n}" for n in range(10)]


@dataclass
class Published:
    """A namespace under test, and what was written into its versions."""

    url: str
    namespace: str
    sink: RedisSink
    epoch: int = 0

    def publish(self, version: int, *, head: str = "dot", items: list[str] = ITEMS, seed: int = 0) -> Pointer:
        rng = np.random.default_rng([version, seed])
        self.items = rng.normal(size=(len(items), D + P)).astype(np.float32)
        self.users = rng.normal(size=(len(USERS), D + P)).astype(np.float32)
        self.sink.write(version, "items", items, self.items)
        self.sink.write(version, "users", USERS, self.users)
        self.layers = [(rng.normal(size=(5, 2 * D)), rng.normal(size=5)), (rng.normal(size=(1, 5)), rng.normal(size=1))]
        if head == "mlp":
            self.sink.write_head(version, pack_head(D, P, self.layers))
        self.epoch = self.epoch or self.sink.claim()
        self.default = rng.normal(size=D + P).astype(np.float32)
        pointer = Pointer(
            version=version,
            epoch=self.epoch,
            dim=D + P,
            buckets=BUCKETS,
            head=head,
            items=len(items),
            users=len(USERS),
            default_user=vector_bytes(self.default),
            published_at="2026-01-02T03:04:05Z",
            writer="disk-a",
        )
        self.sink.flip(pointer)
        return pointer

    def expected(self, head: str, user: Floats, item: Floats) -> float:
        """The score by the book, one number at a time, in double precision."""
        u, e = user.astype(float), item.astype(float)
        if head == "dot":
            return float(sum(a * b for a, b in zip(u, e, strict=True)))
        hidden = [*u[:D], *e[:D]]
        for depth, (weight, bias) in enumerate(self.layers):
            inputs = [max(0.0, value) for value in hidden] if depth else hidden
            hidden = [
                sum(float(np.float32(w)) * x for w, x in zip(row, inputs, strict=True)) + float(np.float32(b))
                for row, b in zip(weight, bias, strict=True)
            ]
        return float(hidden[0] + sum(a * b for a, b in zip(u[D:], e[D:], strict=True)))


@pytest.fixture
def published(redis_url: str, namespace: str) -> Iterator[Published]:
    with RedisSink(redis_url, namespace=namespace, buckets=BUCKETS) as sink:
        yield Published(redis_url, namespace, sink)


@pytest.fixture
def reader(published: Published) -> Iterator[Reader]:
    with Reader(published.url, namespace=published.namespace) as reader:
        yield reader


def plain_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_reader", READERS / "reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_before_the_first_version_the_reader_says_that_there_is_none(reader: Reader) -> None:
    with pytest.raises(NothingPublished, match="wait"), reader.pinned():
        pass


@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_vectors_and_scores_are_those_written(published: Published, reader: Reader, head: str) -> None:
    published.publish(1, head=head)
    with reader.pinned() as view:
        ids, vectors = view.items(["item-3", "nobody", "カフェ", "item-0"])
        assert ids == ["item-3", "カフェ", "item-0"]
        np.testing.assert_array_equal(vectors, published.items[[3, 60, 0]])
        one = view.item("item-3")
        assert one is not None
        np.testing.assert_array_equal(one, published.items[3])
        assert view.item("nobody") is None
        np.testing.assert_array_equal(view.user("user-2"), published.users[2])
        np.testing.assert_array_equal(view.user("nobody"), published.default)
        for user, vector in (("user-2", published.users[2]), ("nobody", published.default)):
            scored, scores = view.score(user, ["item-5", "nobody", "item-7"])
            assert scored == ["item-5", "item-7"]
            wanted = [published.expected(head, vector, published.items[row]) for row in (5, 7)]
            np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)
        assert view.score("user-2", ["nobody"])[1].shape == (0,)


def test_candidates_are_every_item_once(published: Published, reader: Reader) -> None:
    many = [f"item-{n}" for n in range(3000)]
    published.publish(1, items=many)
    with reader.pinned() as view:
        batches = list(view.candidates())
    ids = [id_ for names, _ in batches for id_ in names]
    assert sorted(ids) == sorted(many)
    order = [many.index(id_) for id_ in ids]
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in batches]), published.items[order])


def test_a_pinned_view_stays_with_its_version_through_flips(published: Published, reader: Reader) -> None:
    published.publish(1)
    first = published.items
    with reader.pinned() as view:
        np.testing.assert_array_equal(view.items(ITEMS)[1], first)
        published.publish(2)
        np.testing.assert_array_equal(view.items(ITEMS)[1], first)
        assert view.item("nobody") is None  # a plain miss: the version is still there
        assert view.version == 1


def test_a_view_that_misses_before_its_first_hit_moves_to_the_new_version(published: Published) -> None:
    published.publish(1)
    with Reader(published.url, namespace=published.namespace, refresh_s=3600) as reader, reader.pinned() as view:
        published.publish(2, items=[*ITEMS, "new"])
        published.sink.drop(1)
        ids, vectors = view.items(["item-1", "new"])
        assert (view.version, ids) == (2, ["item-1", "new"])
        np.testing.assert_array_equal(vectors, published.items[[1, -1]])
        np.testing.assert_array_equal(view.user("user-1"), published.users[1])


@pytest.mark.parametrize("then", ["item", "user", "candidates", "score"])
def test_a_version_that_vanishes_under_a_request_is_told(published: Published, reader: Reader, then: str) -> None:
    published.publish(1, head="mlp")
    with reader.pinned() as view:
        user = view.user("user-1")
        published.publish(2, head="mlp")
        published.sink.expire(1, 0.0)
        with pytest.raises(VersionExpired, match="pin again"):
            use(view, then, user)
    with reader.pinned() as view:
        assert view.version == 2


def use(view: View, what: str, user: Floats) -> None:
    if what == "item":
        view.item("item-1")
    elif what == "user":
        view.user("user-2")
    elif what == "score":
        view.scores(user, user[np.newaxis])
    else:
        list(view.candidates())


def test_the_pointer_is_read_again_only_after_its_time(published: Published) -> None:
    published.publish(1)
    now = 100.0
    with Reader(published.url, namespace=published.namespace, refresh_s=5, clock=lambda: now) as reader:
        for second, version in ((100.0, 1), (104.9, 1), (105.0, 2)):
            now = second
            with reader.pinned() as view:
                assert view.version == version
            if second == 100.0:
                published.publish(2)


def test_what_the_fast_path_adds_to_the_served_version_is_found(published: Published, reader: Reader) -> None:
    published.publish(1)
    with reader.pinned() as view:
        assert view.item("brand new") is None
        published.sink.write(1, "items", ["brand new"], np.ones((1, D + P)))
        added = view.item("brand new")
        assert added is not None
        assert added.tolist() == [1.0] * (D + P)


def test_a_follower_hears_of_each_version(published: Published, reader: Reader) -> None:
    published.publish(1)
    heard, stop, arrived = list[int](), threading.Event(), threading.Semaphore(0)

    def on_change(pointer: Pointer) -> None:
        heard.append(pointer.version)
        arrived.release()

    follower = threading.Thread(target=reader.follow, args=(on_change, stop), kwargs={"poll_s": 0.05})
    follower.start()
    try:
        for version in (2, 3):
            assert arrived.acquire(timeout=30)
            published.publish(version)
        assert arrived.acquire(timeout=30)
    finally:
        stop.set()
        follower.join()
    assert heard == [1, 2, 3]


def test_a_pointer_of_a_newer_schema_is_refused_in_plain_words(published: Published, reader: Reader) -> None:
    newer = msgspec.structs.replace(published.publish(1), schema=2)
    redis.Redis.from_url(published.url).set(f"{published.namespace}:current", msgspec.json.encode(newer))
    with pytest.raises(SinkRefused, match="update the reader"):
        reader.pointer()


@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_the_plain_python_reader_gives_the_same_scores(published: Published, head: str) -> None:
    published.publish(1, head=head)
    wanted = {
        user: {item: published.expected(head, vector, published.items[ITEMS.index(item)]) for item in ITEMS}
        for user, vector in (("user-4", published.users[4]), ("nobody", published.default))
    }
    with redis.Redis.from_url(published.url) as client:
        for user, scores in wanted.items():
            got = plain_reader().scores(client, published.namespace, user, [*ITEMS, "nobody"])
            assert got == pytest.approx(scores, abs=1e-5)
    command = [sys.executable, str(READERS / "reader.py"), published.url, published.namespace, "user-4", "カフェ"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8").stdout
    assert json.loads(printed) == pytest.approx({"カフェ": wanted["user-4"]["カフェ"]}, abs=1e-5)


def test_the_plain_python_reader_gets_over_a_version_that_has_just_gone(published: Published) -> None:
    published.publish(1)

    class Late(redis.Redis):  # type: ignore[misc,unused-ignore]
        """Reads the pointer, then the world moves on before the first look-up."""

        def get(self, name: str) -> bytes | None:  # type: ignore[override]
            raw = super().get(name)
            if b'"version":1,' in (raw or b""):
                published.publish(2)
                published.sink.drop(1)
            return raw  # type: ignore[return-value]

    with Late.from_url(published.url) as client:
        got = plain_reader().scores(client, published.namespace, "user-1", ["item-1"])
    assert got == pytest.approx({"item-1": published.expected("dot", published.users[1], published.items[1])}, abs=1e-5)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH; install Debian's redis-tools")
def test_the_shell_reader_prints_a_vector(published: Published) -> None:
    published.publish(1)
    command = ["sh", str(READERS / "reader.sh"), published.url, published.namespace, "items"]
    printed = subprocess.run([*command, "カフェ"], capture_output=True, check=True, text=True).stdout
    assert [float(number) for number in printed.split()] == pytest.approx(published.items[60].tolist(), rel=1e-5)
    unknown = subprocess.run([*command, "nobody"], capture_output=True, check=False, text=True)
    assert (unknown.returncode, unknown.stderr) == (1, "nobody is unknown\n")
