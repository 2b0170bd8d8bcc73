"""The clock is set, a second daemon comes, or the process is ended again and again."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import redis

from streams.redis_keys import bucket_key
from tests.faults.forked_daemon import ForkedDaemon
from tests.faults.ledger import books
from tests.faults.stage import PER_PHASE, Outcome, Run, Stage, fault, wait_for

STEPS = ("collect", "evaluate", "learn", "judge", "checkpoint", "load_back", "publish", "commit")
GRACE_S = 30.0
"""What Kubernetes gives a container between SIGTERM and SIGKILL, unless told otherwise."""


@fault("Process", "the clock set back an hour", quick=True)
def clock_back(stage: Stage) -> Outcome:
    return turned(stage, seconds=-3600.0, what="closed phases and mended Redis as if nothing were")


@fault("Process", "the clock set forward a day")
def clock_forward(stage: Stage) -> Outcome:
    return turned(stage, seconds=86_400.0, what="closed phases and mended Redis as if nothing were")


def turned(stage: Stage, *, seconds: float, what: str) -> Outcome:
    clock = stage.directory / "clock"
    clock.write_text("0")
    run = stage.serving(before=partial(by_clock, str(clock)))
    with run.fault():
        clock.write_text(str(seconds))
    run.send(30)  # too few to close a phase by their number
    run.wait_learned()
    with run.place.sink() as sink, redis.Redis.from_url(run.place.redis_url) as client:
        pointer = sink.pointer()
        assert pointer is not None
        keys = (bucket_key(run.place.namespace, "items", bucket, pointer.version) for bucket in range(pointer.buckets))
        client.delete(next(key for key in keys if client.exists(key)))
    return run.recovered(what, said="redis was behind")


def by_clock(path: str) -> None:
    """The daemon's clock of the day goes by as much ahead as a file says."""
    from service.daemon import Daemon

    true = time.time
    ahead = Path(path)

    def told() -> float:
        return true() + float(ahead.read_text() or 0)

    time.time = told
    defaults = Daemon.__init__.__kwdefaults__
    assert defaults is not None
    assert defaults["clock"] is true
    defaults["clock"] = told


@fault("Process", "a second daemon on the same state directory")
def same_directory(stage: Stage) -> Outcome:
    run = stage.serving()
    run.place.tables["http"]["port"] = run.daemon.port
    second = ForkedDaemon(run.place)
    second.log = run.place.directory / "second.log"
    with run.fault():
        second.launch()
        assert second.end() == 1
    refused = second.log.read_text().strip()
    assert f"process {run.daemon.pid}" in refused
    run.place.configure(http={"port": run.daemon.port})
    outcome = run.recovered("kept the second one out, which named the first", said="phase .* promoted")
    return replace(outcome, said=refused)


@fault("Process", "a second daemon on the namespace, with a state directory of its own", quick=True)
def other_directory(stage: Stage) -> Outcome:
    run = stage.serving()
    other = stage.place(redis_url=run.place.redis_url, name="other")
    other.configure(kafka={"group_id": "other"})
    second = Run(stage, other)
    second.sent, second.interactions = list(run.sent), run.interactions
    with run.fault():
        second.start()
        began = time.monotonic()
        assert run.daemon.end() == 1
    elapsed = time.monotonic() - began
    said = run.said("taken this namespace over|already serves|owns")
    second.wait_learned()
    second.daemon.wait_ready()
    second.wait_whole()
    assert second.daemon.terminate() == 0
    assert books(run.place).events == books(other).events == run.interactions
    return Outcome("the newer one owns the namespace; the older one stopped", elapsed, 0, said)


@fault("Process", "SIGTERM at each of the eight steps of a phase")
def terminated_at_each_step(stage: Stage) -> Outcome:
    run = stage.serving()
    assert run.daemon.terminate() == 0
    longest = 0.0
    for step in STEPS:
        mark = stage.directory / step
        run.daemon = ForkedDaemon(run.place, before=partial(terminated_at, step, str(mark)))
        stage.stack.callback(run.daemon.kill)
        with run.fault():
            run.send(PER_PHASE)
            run.daemon.launch()
            assert run.daemon.end() == 0, run.daemon.tail()
        took = time.time() - mark.stat().st_mtime
        assert took < GRACE_S, f"{took:.1f} s to stop in {step}"
        longest = max(longest, took)
        assert "Traceback" not in run.daemon.tail()
    said = run.said("stopping after the step")
    run.daemon = ForkedDaemon(run.place)
    stage.stack.callback(run.daemon.kill)
    run.start()
    run.recovered("", said="listening|phase")
    what = f"finished the phase and stopped, each time within {longest:.1f} s of {GRACE_S:.0f} s"
    return Outcome(what, longest, 0, said)


def terminated_at(step: str, mark: str) -> None:
    """SIGTERM when the first phase begins this step; the file `mark` tells when."""
    from service.phase import Stopwatch

    true = Stopwatch.__call__
    once = itertools.count()

    @contextmanager
    def marked(self: Stopwatch, step: str, *, at: str = step) -> Iterator[None]:
        if step == at and next(once) == 0:
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGTERM)
        with true(self, step):
            yield

    Stopwatch.__call__ = marked  # type: ignore[method-assign]


@fault("Process", "SIGTERM while neither Kafka nor Redis answers", needs="apache")
def terminated_in_an_outage(stage: Stage) -> Outcome:
    server, producer = stage.own_kafka()
    run = stage.serving(stage.place(kafka=(server, producer)))
    run.send(PER_PHASE)
    with run.fault():
        server.freeze()
        run.redis.freeze()
        time.sleep(1.0)
        began = time.monotonic()
        code = run.daemon.terminate()
        took = time.monotonic() - began
    server.thaw()
    run.redis.thaw()
    assert code == 0, run.daemon.tail()
    assert took < GRACE_S, f"{took:.1f} s"
    said = run.said("stopping after the step")
    run.start()
    run.recovered("", said="listening|phase")
    return Outcome(f"stopped within {took:.1f} s of {GRACE_S:.0f} s; went on at its next start", took, 0, said)


@fault("Process", "restarted many times in a row, every other time by SIGKILL")
def restarts(stage: Stage) -> Outcome:
    run = stage.serving()
    run.daemon.terminate()
    for number in range(stage.restarts):
        run.send(5)
        run.start()
        if number % 2:
            run.daemon.terminate()
        else:
            run.daemon.kill()
    with run.fault():
        run.start()
    outcome = run.recovered("", said="listening|phase")
    with run.place.sink() as sink:
        wait_for("superseded versions to expire", lambda: len(sink.versions()) <= 2)
    kept = len(list((run.place.state_dir / "checkpoints").iterdir()))
    most = run.place.config.publish.keep_versions + 2
    assert kept <= most, f"{kept} checkpoints are left"
    what = f"{stage.restarts} restarts; nothing piled up: {kept} checkpoints, at most two versions in Redis"
    return Outcome(what, outcome.seconds, outcome.lost, outcome.said)
