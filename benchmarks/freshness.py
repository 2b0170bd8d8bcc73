"""How fresh are the vectors in Redis while phases are learned and versions flip?

    python -m benchmarks.freshness [--rate 500] [--seconds 90] [--kafka HOST:PORT] [--server valkey|redis] [--json OUT]

A constant stream goes through a real broker into a real daemon. From outside, by looking into Redis under the pointer's
version, it is timed how long after an event was sent a user's vector changes, a new user has one, or a new item
has one. A returning user whose version changed on the way is set aside: nobody outside can tell; new users and new
items count through every flip. For whatever took longer than half the limit it says what learning was doing then.

Broker, Redis, daemon, sender and the one who looks share this machine's cores; `--kafka` names a broker that runs
already, an embedded one is started otherwise.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from service.demo_daemon import DemoDaemon
from service.demo_probes import KINDS, Freshness, Picker, Watch
from service.phase_log import PhaseLine, read_phase_lines
from streams.embedded import EmbeddedBroker, EmbeddedRedis, find_redis_server
from streams.kafka_producer import EventProducer
from streams.publisher import RedisSink
from streams.simulator import Simulator, World
from streams.simulator_messages import MODALITIES, USER_FEATURES, Message, messages

LIMIT_S = 1.0
"""What freshness is held to."""
STALL_S = LIMIT_S / 2
SHOWN_STALLS = 20
NAMESPACE = f"freshness-{os.getpid()}"
TOPICS = {kind: f"{NAMESPACE}-{kind}" for kind in ("interactions", "items", "users")}
PARTITIONS = 4
PATIENCE_S = 300.0
TICK_S = 0.01
STEPS = ("collect", "evaluate", "learn", "judge", "checkpoint", "load_back", "publish")


@dataclass(frozen=True)
class Span:
    """One step of one phase, in epoch seconds."""

    phase: int
    step: str
    begin: float
    end: float


def main(
    *,
    rate: Annotated[float, typer.Option(min=1, help="Interactions a second.")] = 500.0,
    seconds: Annotated[float, typer.Option(min=10, help="Length of the constant stream.")] = 90.0,
    phase_events: Annotated[int, typer.Option(min=100, help="Interactions in a phase.")] = 2_500,
    backlog: Annotated[int, typer.Option(min=1_000, help="Interactions learned before the stream.")] = 10_000,
    users: Annotated[int, typer.Option(min=100)] = 4_000,
    items: Annotated[int, typer.Option(min=100)] = 2_000,
    dim: Annotated[int, typer.Option(min=1)] = 64,
    kafka: Annotated[str, typer.Option(help="A broker that runs already; none: an embedded one.")] = "",
    server: Annotated[str, typer.Option(help="valkey (embedded) or redis (redis-server on PATH).")] = "valkey",
    keep: Annotated[Path | None, typer.Option(help="Keep state and logs in this directory.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure and print."""
    binary = find_redis_server() if server == "redis" else None
    if server == "redis" and binary is None:
        raise typer.BadParameter("no redis-server on PATH")
    total = backlog + int(rate * seconds)
    # Many newcomers: they alone can be timed through a flip.
    world = World(users=users, items=items, events=total, arrival_rate=30.0, user_arrival_rate=60.0, profiles=0.2)
    simulator = Simulator(world)
    with ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        broker = kafka or stack.enter_context(EmbeddedBroker(directory=directory)).address
        redis = stack.enter_context(EmbeddedRedis(directory=directory, binary=binary))
        producer = stack.enter_context(EventProducer(bootstrap_servers=broker, linger_ms=2))
        producer.ensure_topics(TOPICS.values(), partitions=PARTITIONS, compacted=[TOPICS["items"], TOPICS["users"]])
        sink = stack.enter_context(RedisSink(redis.address, namespace=NAMESPACE))
        watch = Watch(sink, poll_s=0.002)
        stack.callback(watch.stop)
        picker = Picker(
            watch,
            quiet=int(2 * rate),
            every=max(1, int(rate / 50)),
            plain=lambda user: not simulator.tastes.has_profile[int(user[1:])],
        )
        stream = messages(simulator)
        first_live = send_backlog(producer, stream, backlog, picker)
        config = directory / "headwater.toml"

        def write_config(port: int) -> None:
            tables = settings(broker=broker, redis=redis.address, directory=directory, port=port)
            tables["phase"] = {"max_events": phase_events, "max_wait_s": 60}
            tables["model"] |= {"dim": dim}
            config.write_text(toml(tables))

        daemon = stack.enter_context(DemoDaemon(directory=directory, config=config, write_config=write_config))
        state = directory / "state" / "phases.jsonl"
        wait_for_first_version(daemon, state, backlog // phase_events)
        watch.start()
        before, begun = len(lines_of(state)), time.time()
        send_steadily(producer, first_live, stream, rate=rate, picker=picker, daemon=daemon)
        sent_for = time.time() - begun
        drain(watch)
        watch.stop()
        figures = summary(watch.found, lines_of(state)[before:], sent_for=sent_for, rate=rate)
        figures |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "broker": kafka or "embedded", "redis": server}
    show(figures)
    if json_out is not None:
        json_out.write_text(json.dumps(figures, indent=2) + "\n")


def settings(*, broker: str, redis: str, directory: Path, port: int) -> dict[str, Any]:
    """The daemon's configuration: what is not about this machine is as it is by default."""
    return {
        "namespace": NAMESPACE,
        "state_dir": str(directory / "state"),
        "kafka": {"bootstrap_servers": broker, "group_id": NAMESPACE}
        | {f"{kind}_topic": topic for kind, topic in TOPICS.items()},
        "redis": {"url": redis},
        "model": {"modalities": dict(MODALITIES), "user_features": dict(USER_FEATURES)},
        # Every phase is to flip: what is measured is freshness, not the judge.
        "promotion": {"tolerance": 0.9, "min_events": 1_000_000},
        "publish": {"grace_s": 5.0},
        "http": {"port": port},
        "log": {"format": "json"},
    }


def toml(tables: dict[str, Any], prefix: str = "") -> str:
    """Nested tables as TOML."""
    plain = [f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in tables.items() if not is_table(value)]
    inner = [f"\n[{prefix}{key}]\n{toml(value, f'{prefix}{key}.')}" for key, value in tables.items() if is_table(value)]
    return "".join([*plain, *inner])


def is_table(value: Any) -> bool:
    return isinstance(value, dict)


def send_backlog(producer: EventProducer, stream: Iterator[Message], count: int, picker: Picker) -> Message:
    """Sends everything before interaction `count` at once; returns the first message after it."""
    for message in stream:
        if message.number >= count:
            producer.flush()
            return message
        picker(message, live=False)
        producer.send(TOPICS[message.kind], message.key, message.value)
    raise ValueError("the stream is shorter than its backlog")


def send_steadily(
    producer: EventProducer,
    first: Message,
    stream: Iterator[Message],
    *,
    rate: float,
    picker: Picker,
    daemon: DemoDaemon,
) -> None:
    """Sends the rest, each message when it is due; those before an interaction right before it."""
    waiting = threading.Event()
    begun, message = time.monotonic(), first
    while True:
        due = first.number + int((time.monotonic() - begun) * rate)
        while message.number <= due:
            picker(message, live=True)
            producer.send(TOPICS[message.kind], message.key, message.value, int(time.time() * 1000))
            following = next(stream, None)
            if following is None:
                producer.flush()
                return
            message = following
        daemon.check()
        waiting.wait(TICK_S)


def wait_for_first_version(daemon: DemoDaemon, state: Path, phases: int) -> None:
    """Until the backlog is learned."""
    deadline = time.monotonic() + PATIENCE_S
    while sum(line.published_at is not None for line in lines_of(state)) < phases:
        daemon.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"the backlog was not learned in {PATIENCE_S:.0f} s; see {daemon.log}")
        time.sleep(0.2)


def drain(watch: Watch) -> None:
    """Until every probe has arrived, or has been waited for in vain."""
    deadline = time.monotonic() + 40.0
    while watch.waiting() and time.monotonic() < deadline:
        time.sleep(0.05)


def lines_of(path: Path) -> list[PhaseLine]:
    return read_phase_lines(path) if path.exists() else []


def spans(lines: Sequence[PhaseLine]) -> list[Span]:
    """When each step of each phase ran. A phase may begin after it was closed, so they are placed by its flip."""
    found = []
    for line in lines:
        if line.published_at is None:
            continue
        at = line.published_at - sum(line.stages.get(step, 0.0) for step in STEPS)
        for step in STEPS:
            found.append(Span(line.phase, step, at, at + line.stages.get(step, 0.0)))
            at = found[-1].end
    return found


def summary(found: Freshness, lines: Sequence[PhaseLine], *, sent_for: float, rate: float) -> dict[str, Any]:
    """All figures as plain values."""
    during = spans(lines)

    def doing(at: float) -> str:
        steps = [f"phase {span.phase}: {span.step}" for span in during if span.begin <= at <= span.end]
        return ", ".join(steps) or "nothing"

    slow = sorted((one for one in found.served if one.seconds > STALL_S), key=lambda one: one.sent_at)
    stages = {step: [line.stages.get(step, 0.0) for line in lines] for step in STEPS}
    return {
        "seconds": round(sent_for, 1),
        "rate": rate,
        "phases": len(lines),
        "flips": sum(line.published_at is not None for line in lines),
        "stages": {step: round(sum(taken) / max(1, len(taken)), 3) for step, taken in stages.items()},
        "freshness": {
            kind: {
                "count": len(found.seconds(kind)),
                "through_a_flip": sum(one.across_flip for one in found.served if one.kind == kind),
                "p50": found.percentile(50, kind),
                "p99": found.percentile(99, kind),
                "max": found.percentile(100, kind),
                "p99_of_limit": found.percentile(99, kind) / LIMIT_S,
            }
            for kind in KINDS
        },
        "set_aside": found.set_aside,
        "missed": len(found.missed),
        "stalls": [
            {"at": round(one.sent_at - lines[0].opened_at, 2) if lines else 0.0, "kind": one.kind,
             "seconds": round(one.seconds, 3), "learning": doing(one.sent_at)}
            for one in slow
        ],
    }  # fmt: skip


def show(figures: dict[str, Any]) -> None:
    """The figures for people."""
    where = f"{figures['cores']} cores, load {figures['load']:.1f}, {figures['broker']} broker, {figures['redis']}"
    print(f"{figures['seconds']} s at {figures['rate']:.0f} interactions/s, {figures['flips']} flips ({where})")
    print("mean seconds of a phase: " + ", ".join(f"{step} {taken:.2f}" for step, taken in figures["stages"].items()))
    print(f"{'':9} {'count':>6} {'p50':>8} {'p99':>8} {'max':>8} {'p99/limit':>10}")
    for kind, row in figures["freshness"].items():
        print(
            f"{kind:9} {row['count']:6d} {row['p50']:7.3f}s {row['p99']:7.3f}s {row['max']:7.3f}s"
            f" {row['p99_of_limit']:9.0%}   {row['through_a_flip']} through a flip"
        )
    print(f"set aside at a flip: {figures['set_aside']}; missed: {figures['missed']}")
    stalls = figures["stalls"]
    print(f"slower than {STALL_S} s: {len(stalls)}")
    for cause, count in Counter(stall["learning"].partition(": ")[2] or "nothing" for stall in stalls).most_common():
        print(f"  {count:5d} sent while learning did: {cause}")
    for stall in sorted(stalls, key=lambda stall: -stall["seconds"])[:SHOWN_STALLS]:
        print(f"  {stall['at']:7.2f} s  {stall['kind']:8} {stall['seconds']:.3f} s  {stall['learning']}")


if __name__ == "__main__":
    typer.run(main)
