"""`headwater replay`: events from files through the same phases as the daemon's, without broker or Redis.

The records of all files are merged by time and numbered in that order, so that an interrupted replay goes on where
its last checkpoint left off. The state it leaves is a backfill: `headwater run --from TIME` goes on from it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.arrivals import Arrival, ClosedPhase
from service.config import Config
from service.connections import event_decoder, event_topics
from service.engine import Engine
from service.errors import InputFileError, StateError
from service.metrics import Metrics
from service.phase import run_phase
from service.phase_builder import Entry, PhaseBuilder
from service.phase_log import PhaseLine
from service.state_dir import StateDirectory
from streams.events import DecodeError, EventDecoder, Interaction, Item, Record, User
from streams.files import FileEvent, merge_by_time, read_events
from streams.source_types import TopicPartition

log = structlog.get_logger(__name__)

WARM_SHARE = 0.2
"""Of the judge's protocol: the first share of the events is one phase that is learned and not counted."""
JUDGED_PHASES = 160
"""Of the judge's protocol: equal phases after that one."""


def replay(config: Config, files: Sequence[Path], *, judge: bool = False, json_out: Path | None = None) -> int:
    """Learns the files phase by phase and prints the prequential metrics; returns the exit code, 0."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="headwater-judge-") as scratch:
        if judge:
            # The judge counts from nothing, and leaves nothing behind.
            every = config.evaluate.model_copy(update={"max_per_phase": sys.maxsize})
            config = config.model_copy(update={"state_dir": Path(scratch) / "state", "evaluate": every})
        with StateDirectory.open(config.state_dir, config.namespace) as state:
            engine = Engine(config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=time.time)
            if engine.manifest is not None and not engine.is_backfill:
                raise StateError(
                    f"{config.state_dir} holds the state of a daemon.",
                    hint="Replay into another state_dir, so that its offsets stay true.",
                )
            if judge:
                engine.evaluation_chunk = 1  # popularity too as of each event
            records = _Records(config, files, done=_flat(engine))
            phases = _judged(records) if judge else _cut(config, records, engine)
            started = time.perf_counter()
            lines = _learn(phases, engine, console)
            seconds = time.perf_counter() - started
    summary = summarise(lines, skip=1 if judge else 0) | {"seconds": seconds, "no_topic": dict(records.no_topic)}
    _print(console, summary)
    if json_out is not None:
        json_out.write_text(json.dumps(summary, indent=2) + "\n")
    return 0


class _Records:
    """The files' events, decoded and numbered; those before `done` are passed over."""

    def __init__(self, config: Config, files: Sequence[Path], *, done: dict[TopicPartition, int]) -> None:
        missing = [str(path) for path in files if not path.exists()]
        if missing:
            raise InputFileError(f"There is no file {missing[0]}.", hint="Check the path.")
        self._config = config
        self._files = files
        self._decoder: EventDecoder = event_decoder(config)
        self._done = done
        self.start = {(topic, 0): done.get((topic, 0), 0) for topic in event_topics(config)}
        self.no_topic: Counter[str] = Counter()
        """Events by kind that were passed over, for the configuration names no topic for them."""

    def __iter__(self) -> Iterator[tuple[TopicPartition, int, Arrival | None]]:
        kafka = self._config.kafka
        topics = {"interactions": kafka.interactions_topic, "items": kafka.items_topic, "users": kafka.users_topic}
        numbers = dict.fromkeys(topics.values(), 0)
        now = 0.0
        fields = self._config.events.fields
        events = merge_by_time([read_events(path, fields=fields) for path in self._files], not_after=time.time())
        for event in events:
            topic = topics[event.kind]
            if not topic:
                if not self.no_topic[event.kind]:
                    log.warning(
                        f"passing over {event.kind}: set [kafka] {event.kind}_topic to read them", key=event.key
                    )
                self.no_topic[event.kind] += 1
                continue
            offset, numbers[topic] = numbers[topic], numbers[topic] + 1
            now = max(now, event.time or now)
            if offset >= self._done.get((topic, 0), 0):
                yield (topic, 0), offset, self._decode(event, topic, offset, now)

    def _decode(self, event: FileEvent, topic: str, offset: int, now: float) -> Arrival | None:
        record = Record(topic, 0, offset, -1, event.key.encode("utf-8", "surrogatepass"), event.value)
        decode: dict[str, Callable[[Record], Interaction | Item | User]] = {
            "interactions": self._decoder.interaction,
            "items": self._decoder.item,
            "users": self._decoder.user,
        }
        try:
            return Arrival(topic, 0, offset, now, decode[event.kind](record))
        except DecodeError as error:
            log.warning("a record cannot be used", topic=topic, number=offset, reason=error.reason, detail=error.detail)
            return None


def _cut(config: Config, records: _Records, engine: Engine) -> Iterator[ClosedPhase]:
    """Phases by count or window, as the daemon cuts them; the wait means nothing here."""
    builder = PhaseBuilder(
        config=config.phase.model_copy(update={"max_wait_s": float("inf")}),
        positions=records.start,
        maxima=engine.maxima,
    )
    for tp, offset, arrival in records:
        if arrival is not None and not isinstance(arrival.event, Interaction):
            builder.take_content(arrival, 0.0)
        elif tp[0] == config.kafka.interactions_topic:
            builder.take(tp, Entry(offset, arrival), 0.0)
        else:
            builder.pass_content(tp, offset)
        reason = builder.closing(0.0, set())
        if reason is not None:
            yield builder.close(now=0.0, at=0.0, idle=set(), closed_by=reason)
    if not builder.empty:
        yield builder.close(now=0.0, at=0.0, idle=set(), closed_by="once")


def _judged(records: _Records) -> Iterator[ClosedPhase]:
    """Phases at the judge's cuts: a warm-up, then equal ones, each cut moved to the next change of time."""
    everything = [(tp, offset, arrival) for tp, offset, arrival in records if arrival is not None]
    interactions = sorted(
        (arrival for _, _, arrival in everything if isinstance(arrival.event, Interaction)), key=lambda a: a.time
    )
    content = deque(arrival for _, _, arrival in everything if not isinstance(arrival.event, Interaction))
    at = dict(records.start)
    cuts = judge_cuts([arrival.time for arrival in interactions])
    for begin, end in pairwise(cuts):
        phase = ClosedPhase(
            start=_nested(at),
            end={},
            interactions=interactions[begin:end],
            opened_at=0.0,
            closed_at=0.0,
            closed_by="count",
        )
        last = phase.interactions[-1].time
        while content and content[0].time <= last:
            arrival = content.popleft()
            (phase.items if isinstance(arrival.event, Item) else phase.users).append(arrival)
            at[arrival.topic, 0] += 1
        for arrival in phase.interactions:
            at[arrival.topic, 0] += 1
        phase.end = _nested(at)
        phase.watermark = last
        yield phase


def judge_cuts(times: Sequence[float], *, warm: float = WARM_SHARE, phases: int = JUDGED_PHASES) -> list[int]:
    """Indices at which phases of the sorted `times` begin and end; equal times are never parted."""
    n, first = len(times), int(len(times) * warm)
    cuts = [0]
    for wanted in [first + int((n - first) * part / phases) for part in range(phases + 1)]:
        cut = wanted
        while 0 < cut < n and times[cut] == times[cut - 1]:
            cut += 1
        if cut > cuts[-1]:
            cuts.append(cut)
    return cuts


def _learn(phases: Iterable[ClosedPhase], engine: Engine, console: Console) -> list[PhaseLine]:
    lines: list[PhaseLine] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("events", total=None)
        for phase in phases:
            interrupted = engine.interrupted()
            resumed = interrupted if interrupted is not None and interrupted.end == phase.end else None
            line = run_phase(phase, engine, resumed=resumed)
            lines.append(line)
            progress.update(task, advance=line.events, description=f"phase {line.phase}, {line.decision}")
    return lines


def summarise(lines: Sequence[PhaseLine], *, skip: int = 0) -> dict[str, Any]:
    """Metrics over all phases but the first `skip`, each weighted by the events it was measured on."""
    means: dict[str, float] = {}
    for suffix, weight in (("", "ranked"), ("cold_", "cold_events")):
        counted = [line.metrics for line in lines[skip:] if line.metrics.get(weight)]
        total = sum(metrics[weight] or 0.0 for metrics in counted)
        names = {name for metrics in counted for name in metrics if name.startswith("cold_") == bool(suffix)}
        for name in sorted(names - {"ranked", "sampled", "cold_events"}):
            if total and not name.startswith(("gate_", "learn_", "shadow_")):
                means[name] = sum((m.get(name) or 0.0) * (m[weight] or 0.0) for m in counted) / total
    decisions = {decision: len(list(group)) for decision, group in groupby(sorted(line.decision for line in lines))}
    learn_s = sum(line.stages.get("learn", 0.0) + line.stages.get("judge", 0.0) for line in lines)
    events = sum(line.events for line in lines)
    return {
        "phases": len(lines),
        "events": events,
        "ranked": int(sum(line.metrics.get("ranked") or 0 for line in lines[skip:])),
        "rejected": sum(line.rejected for line in lines),
        "decisions": decisions,
        "metrics": means,
        "learn_events_per_s": events / learn_s if learn_s else None,
    }


def _print(console: Console, summary: dict[str, Any]) -> None:
    table = Table(
        "metric",
        "value",
        title=f"{summary['events']} events in {summary['phases']} phases, each ranked before it was learned",
    )
    for name, value in summary["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    for decision, count in summary["decisions"].items():
        table.add_row(f"phases {decision}", str(count))
    if summary["rejected"]:
        table.add_row("records that cannot be used (see the log)", str(summary["rejected"]))
    for kind, count in summary["no_topic"].items():
        table.add_row(Text(f"{kind} passed over, for there is no [kafka] {kind}_topic"), str(count))
    if summary["learn_events_per_s"]:
        table.add_row("events learned per second (learn and judge)", f"{summary['learn_events_per_s']:.0f}")
    console.print(table)


def _flat(engine: Engine) -> dict[TopicPartition, int]:
    return {(topic, p): offset for topic, partitions in engine.offsets.items() for p, offset in partitions.items()}


def _nested(flat: dict[TopicPartition, int]) -> dict[str, dict[int, int]]:
    return {topic: {partition: offset} for (topic, partition), offset in flat.items()}
