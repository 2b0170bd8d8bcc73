"""`headwater produce`: sends files of events to the configured topics, creating those that do not exist."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.config import Config
from service.connections import event_topics, kafka_security
from streams.files import FileEvent, Kind, read_events
from streams.kafka_producer import EventProducer

log = structlog.get_logger(__name__)

REPORT_EVERY_S = 10.0
SHOW_EVERY = 500


class Pace:
    """Lets so many through a second: each waits for its own moment since the first, so that delays do not add up."""

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._started: float | None = None
        self._passed = 0

    def wait(self) -> None:
        """Return when the next one may go; at once without a rate."""
        if self._rate is None:
            return
        if self._started is None:
            self._started = self._clock()
        early_s = self._started + self._passed / self._rate - self._clock()
        self._passed += 1
        if early_s > 0:
            self._sleep(early_s)


def produce(config: Config, files: Sequence[Path], rate: float | None) -> int:
    """Send every event of the files and wait until the broker has them all; the exit code, 0.

    Files that begin with items or users go first, so that interactions find what they are about; apart from that in the
    given order. Records are stamped with the time of sending, not of the event: topics with a retention keep them.
    Raises `EventFileError`, `SourceUnavailable`, `SendFailed`.
    """
    topics: dict[Kind, str] = {
        "interactions": config.kafka.interactions_topic,
        "items": config.kafka.items_topic,
        "users": config.kafka.users_topic,
    }
    sent: Counter[Kind] = Counter()
    homeless: Counter[Kind] = Counter()
    pace = Pace(rate)
    began = time.monotonic()
    with EventProducer(bootstrap_servers=config.kafka.bootstrap_servers, security=kafka_security(config)) as producer:
        compacted = [topic for topic in (config.kafka.items_topic, config.kafka.users_topic) if topic]
        wanted = [*event_topics(config), config.kafka.dead_letter_topic]
        created = producer.ensure_topics([topic for topic in wanted if topic], compacted=compacted)
        if created:
            log.info("created topics", topics=created)
        for event in _shown(_in_order(config, files), sent):
            if not topics[event.kind]:
                homeless[event.kind] += 1
                continue
            pace.wait()
            producer.send(topics[event.kind], event.key.encode("utf-8", "surrogatepass") or None, event.value)
            sent[event.kind] += 1
        producer.flush()
    for kind, count in homeless.items():
        log.warning("left out, for there is no topic for them", kind=kind, count=count, key=f"[kafka] {kind}_topic")
    log.info("sent", **{kind: sent[kind] for kind in topics}, seconds=round(time.monotonic() - began, 1))
    return 0


def _in_order(config: Config, files: Sequence[Path]) -> Iterator[FileEvent]:
    """The files one after another, those that begin with items or users first."""
    opened = []
    for path in files:
        events = read_events(path, fields=config.events.fields)
        first = next(events, None)
        if first is not None:
            opened.append((first.kind == "interactions", chain([first], events)))
    opened.sort(key=lambda pair: pair[0])  # Stable: otherwise the given order.
    return chain.from_iterable(events for _, events in opened)


def _shown(events: Iterator[FileEvent], sent: Counter[Kind]) -> Iterator[FileEvent]:
    """The same events, with a counter on a terminal and a log line now and then elsewhere."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} events"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("produce", total=None)
        reported = time.monotonic()
        for event in events:
            yield event
            total = sent.total()
            if total % SHOW_EVERY == 0:
                progress.update(task, completed=total)
                if not console.is_terminal and time.monotonic() - reported >= REPORT_EVERY_S:
                    reported = time.monotonic()
                    log.info("sending", records=total)
