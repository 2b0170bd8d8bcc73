"""Does anything grow that should not, over thousands of phases and many restarts?

    python -m benchmarks.soak [--phases 2000] [--restart-every 250] [--phase-events 20] [--server redis] [--out soak]

A real daemon learns a simulated stream that is sent as fast as it is learned, never more than a few phases ahead; every
so many phases it is ended, by SIGTERM and SIGKILL in turn, and started again. Meanwhile it is looked at from outside:
resident memory, open files, threads, keys in Redis, and the state directory, in which the checkpoints (which must stay
as many) are told from what is kept for good: the segments with every event, and the line a phase of phases.jsonl.

Writes OUT.json and OUT.png. A figure is called flat if, after the first `--settle` phases, its level over the last
tenth is at most 5% above that over the first tenth.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import redis
import typer

from benchmarks.freshness import toml
from service.demo_daemon import DemoDaemon
from streams.embedded import EmbeddedBroker, EmbeddedRedis, find_redis_server
from streams.kafka_producer import EventProducer
from streams.simulator import Simulator, World
from streams.simulator_messages import MODALITIES, USER_FEATURES, Message, messages

NAMESPACE = "soak"
TOPICS = {kind: f"soak-{kind}" for kind in ("interactions", "items", "users")}
LAWS: dict[str, Any] = {"latent_dim": 4, "no_repeat": 20, "arrival_rate": 0, "user_arrival_rate": 0}
"""Nobody and nothing new comes: what is known of them is kept, and in that growth no other would be seen."""
AHEAD = 4
"""Phases that the sender is ahead of the daemon."""
LOOK_S = 0.25
STUCK_S = 300.0
"""So long without a phase is a failure."""
FLAT = 0.05
FIGURES = {
    "rss": "resident memory, MiB",
    "files": "open files and sockets",
    "threads": "threads",
    "keys": "keys in Redis",
    "redis_memory": "memory of Redis, MiB",
    "checkpoints": "checkpoints on disk, MiB",
    "entries": "files in the state directory",
    "segments": "segments on disk (every event, for good), MiB",
    "log": "phases.jsonl (a line a phase, for good), MiB",
}
FOR_GOOD = ("segments", "log")


@dataclass(frozen=True)
class Look:
    """What was found after so many phases."""

    phase: int
    life: int
    """How many times the daemon had been started."""
    seconds: float
    rss: float
    files: int
    threads: int
    keys: int
    redis_memory: float
    checkpoints: float
    entries: int
    segments: float
    log: float


def main(
    *,
    phases: Annotated[int, typer.Option(min=20)] = 2_000,
    restart_every: Annotated[int, typer.Option(min=5, help="Phases between two restarts.")] = 250,
    phase_events: Annotated[int, typer.Option(min=5)] = 20,
    settle: Annotated[int, typer.Option(min=0, help="First phases, which do not count.")] = 200,
    server: Annotated[str, typer.Option(help="valkey (embedded) or redis (redis-server on PATH).")] = "valkey",
    out: Annotated[Path, typer.Option(help="Prefix of the files that are written.")] = Path("soak"),
) -> None:
    """Run, look, and say what stayed flat."""
    binary = find_redis_server() if server == "redis" else None
    if server == "redis" and binary is None:
        raise typer.BadParameter("no redis-server on PATH")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-soak-")))
        broker = stack.enter_context(EmbeddedBroker(directory=directory))
        store = stack.enter_context(EmbeddedRedis(directory=directory, binary=binary))
        producer = stack.enter_context(EventProducer(bootstrap_servers=broker.address, linger_ms=5))
        producer.ensure_topics(TOPICS.values(), partitions=4)
        client = stack.enter_context(redis.Redis.from_url(store.address))

        def write_config(port: int) -> None:
            (directory / "headwater.toml").write_text(
                toml(_settings(broker.address, store.address, directory, port, phase_events))
            )

        daemon = stack.enter_context(
            DemoDaemon(directory=directory, config=directory / "headwater.toml", write_config=write_config)
        )
        world = World(seed=7, users=100, items=150, events=(phases + AHEAD) * phase_events, **LAWS)
        sender = Sender(producer, messages(Simulator(world)))
        looks: list[Look] = []
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):  # what there is by then is told
            for look in _soak(daemon, client, directory / "state", sender, phases, restart_every, phase_events):
                looks.append(look)
    verdicts = judge(looks, settle=settle)
    report = {"phases": looks[-1].phase, "restarts": looks[-1].life - 1, "phase_events": phase_events, "server": server}
    report |= {"hours": looks[-1].seconds / 3600, "figures": verdicts, "looks": [asdict(look) for look in looks]}
    out.with_suffix(".json").write_text(json.dumps(report) + "\n")
    _print(report, settle)
    if not plot(out.with_suffix(".png"), looks, settle):
        print("No plot: matplotlib is not installed.")
    if any(not verdict["flat"] for name, verdict in verdicts.items() if name not in FOR_GOOD):
        raise typer.Exit(1)


def _settings(broker: str, store: str, directory: Path, port: int, phase_events: int) -> dict[str, Any]:
    return {
        "namespace": NAMESPACE,
        "state_dir": str(directory / "state"),
        "kafka": {"bootstrap_servers": broker, "group_id": NAMESPACE, "dead_letter_topic": ""}
        | {f"{kind}_topic": topic for kind, topic in TOPICS.items()},
        "redis": {"url": store},
        "phase": {"max_events": phase_events, "max_wait_s": 5.0},
        "model": {"dim": 8, "history": 8, "modalities": dict(MODALITIES), "user_features": dict(USER_FEATURES)},
        "train": {"threads": 1, "replay_ratio": 1.0},
        "evaluate": {"max_per_phase": 10},
        # Every phase is to flip: what is looked at is what a flip leaves, not the judge.
        "promotion": {"tolerance": 0.99, "min_events": 1_000_000},
        "publish": {"buckets": 8, "keep_versions": 5, "grace_s": 1.0},
        "http": {"port": port},
        "log": {"level": "warning"},
    }


class Sender:
    """The stream, sent up to where it is asked for."""

    def __init__(self, producer: EventProducer, stream: Iterator[Message]) -> None:
        self._producer, self._stream = producer, stream
        self._sent = 0

    def up_to(self, number: int) -> None:
        """Everything before this interaction, which the last one sent may pass by the messages that go before it."""
        while self._sent < number and (message := next(self._stream, None)) is not None:
            self._producer.send(TOPICS[message.kind], message.key, message.value)
            self._sent += message.kind == "interactions"
        self._producer.flush()


def _soak(
    daemon: DemoDaemon,
    client: redis.Redis,
    state: Path,
    sender: Sender,
    phases: int,
    restart_every: int,
    phase_events: int,
) -> Iterator[Look]:
    began, life, done, progress = time.monotonic(), 1, 0, time.monotonic()
    while done < phases:
        sender.up_to((done + AHEAD) * phase_events)
        time.sleep(LOOK_S)
        daemon.check()
        now = _phases(state)
        if now > done:
            done, progress = now, time.monotonic()
            yield _look(daemon, client, state, done, life, time.monotonic() - began)
            if done >= life * restart_every and done < phases:
                _end(daemon, by=signal.SIGTERM if life % 2 else signal.SIGKILL)
                daemon.start()
                life += 1
        elif time.monotonic() - progress > STUCK_S:
            raise TimeoutError(f"no phase after {done} for {STUCK_S:.0f} s; see {daemon.log}")


def _end(daemon: DemoDaemon, *, by: signal.Signals) -> None:
    if by is signal.SIGKILL:
        daemon.kill()
    else:
        daemon.stop()


def _phases(state: Path) -> int:
    path = state / "phases.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _look(daemon: DemoDaemon, client: redis.Redis, state: Path, phase: int, life: int, seconds: float) -> Look:
    sizes = {"checkpoints": 0.0, "segments": 0.0}
    entries = 0
    for directory, _, names in os.walk(state):  # which passes over what was pruned since it was listed
        for path in (Path(directory) / name for name in names):
            with suppress(FileNotFoundError):
                entries += 1
                kind = path.relative_to(state).parts[0]
                sizes[kind] = sizes.get(kind, 0.0) + path.stat().st_size / 2**20
    process = Path(f"/proc/{daemon.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    info: Any = client.info("memory")
    keys: Any = client.dbsize()
    return Look(
        phase=phase,
        life=life,
        seconds=round(seconds, 2),
        rss=int(status["VmRSS"].split()[0]) / 1024,
        files=len(os.listdir(process / "fd")),  # noqa: PTH208 - links to what is no file
        threads=int(status["Threads"]),
        keys=keys,
        redis_memory=info["used_memory"] / 2**20,
        checkpoints=sizes["checkpoints"],
        entries=entries,
        segments=sizes["segments"],
        log=sizes.get("phases.jsonl", 0.0),
    )


def judge(looks: list[Look], *, settle: int) -> dict[str, dict[str, Any]]:
    """Of each figure its level at the beginning and the end, after `settle` phases, and its slope."""
    counted = [look for look in looks if look.phase > settle] or looks
    phase = np.array([look.phase for look in counted], float)
    tenth = max(1, len(counted) // 10)
    verdicts = {}
    for name in FIGURES:
        values = np.array([getattr(look, name) for look in counted], float)
        first, last = float(np.median(values[:tenth])), float(np.median(values[-tenth:]))
        slope = float(np.polyfit(phase, values, 1)[0]) if len(counted) > 1 else 0.0
        flat = last <= first * (1 + FLAT) or ((last - first) < 1 and name in ("files", "threads"))
        verdicts[name] = {
            "first": first,
            "last": last,
            "max": float(values.max()),
            "per_1000": slope * 1000,
            "flat": flat,
        }
    return verdicts


def _print(report: dict[str, Any], settle: int) -> None:
    print(f"{report['phases']} phases of {report['phase_events']} events, {report['restarts']} restarts", end=", ")
    print(f"{report['hours'] * 60:.0f} minutes; after the first {settle}:\n")
    print(f"{'':50} {'first tenth':>12} {'last tenth':>12} {'most':>10} {'a 1,000 phases':>15}")
    for name, verdict in report["figures"].items():
        cells = f"{verdict['first']:12.2f} {verdict['last']:12.2f} {verdict['max']:10.2f} {verdict['per_1000']:+15.3f}"
        print(f"{FIGURES[name]:50} {cells}  {'flat' if verdict['flat'] else 'grows'}")


def plot(path: Path, looks: list[Look], settle: int) -> bool:
    """Draws every figure over phases as a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(3, 3, figsize=(15, 10), layout="constrained", sharex=True)
    phase = [look.phase for look in looks]
    restarts = [after.phase for before, after in itertools.pairwise(looks) if after.life > before.life]
    for axes, (name, what) in zip(grid.flat, FIGURES.items(), strict=True):
        axes.plot(phase, [getattr(look, name) for look in looks], linewidth=1)
        axes.set(title=what, ylim=(0, None))
        axes.axvline(settle, color="grey", linestyle=":")
        axes.plot(restarts, [0] * len(restarts), "|", color="red", clip_on=False)
    for axes in grid[-1]:
        axes.set_xlabel("phase (red: restarts)")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


if __name__ == "__main__":
    command: Callable[..., None] = main
    typer.run(command)
