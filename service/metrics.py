"""Every metric Headwater exposes, in one place; `docs/metrics.md` is generated from it, and a test compares the two."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Freshness is promised in seconds and shows trouble well before half a minute; stages may take minutes.
FRESHNESS_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)
STAGE_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

DECISIONS = ("promoted", "refused", "held", "empty")
FRESHNESS_KINDS = ("user", "item", "profile")
EXAMPLE_KINDS = ("new", "replayed")
VECTOR_KINDS = ("items", "users")
REPAIRED = (*VECTOR_KINDS, "head", "pointer")


class Described(NamedTuple):
    """What the documentation says about one metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """The daemon's metrics, on the registry that is passed in: a test makes a fresh one, two daemons never share."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.described: list[Described] = []

        # What came in.
        self.events = self._counter("events_total", "Interactions read and taken into a phase, late ones included.")
        self.items = self._counter("items_total", "Item events read.")
        self.users = self._counter("users_total", "User events read.")
        self.rejected = self._counter("rejected_total", "Records that cannot be used, by reason.", "reason")
        self.duplicates = self._counter("duplicates_total", "Interactions dropped because their event id was seen.")
        self.late = self._counter("late_total", "Interactions that came after the watermark had passed them.")
        self.lost = self._counter("lost_total", "Offsets that Kafka deleted before they were read.")
        self.skipped = self._counter("skipped_total", "Offsets without a record: transaction markers, compaction.")
        self.dead_letters = self._counter("dead_letters_total", "Records written to the dead letter topic.")
        self.waiting_events = self._gauge("waiting_events", "Interactions in Kafka behind the phase being learned.")
        self.consumer_lag_records = self._gauge(
            "consumer_lag_records",
            "Records between the last one read and the partition's end.",
            "topic",
            "partition",
        )
        self.buffer_records = self._gauge("buffer_records", "Records read and waiting for learning.")
        self.paused = self._gauge("paused", "1 while reading is paused because the buffer is full.")
        self.watermark_timestamp_seconds = self._gauge(
            "watermark_timestamp_seconds", "Event time that every partition with traffic has reached."
        )

        # What learning did with it.
        self.phases = self._counter("phases_total", "Phases finished, by decision.", "decision")
        self.refusals = self._counter("refusals_total", "Candidates refused, by reason.", "reason")
        self.phase_seconds = self._histogram("phase_seconds", "Duration of a phase, all steps.", STAGE_BUCKETS_S)
        self.phase_stage_seconds = self._histogram(
            "phase_stage_seconds", "Duration of one step of a phase.", STAGE_BUCKETS_S, "stage"
        )
        self.expired = self._counter("expired_total", "Items and users forgotten for want of events.", "kind")
        self.learn_loss = self._gauge("learn_loss", "Mean training loss of the last phase.")
        self.examples = self._counter("examples_total", "Examples learned, new or replayed.", "kind")
        self.replay_ratio = self._gauge("replay_ratio", "Replayed examples for each new one in the last phase.")
        self.quality = self._gauge(
            "quality", "Quality on held-out events at the last judgement, of each contender.", "metric", "who"
        )
        self.shadow_change = self._gauge(
            "shadow_change",
            "Quality of the shadow relative to another's over the last windows: change, and its bounds low and high.",
            "against",
            "figure",
        )
        self.floor_change = self._gauge(
            "floor_change",
            "Live score of the served version relative to decayed popularity's: change, and its bounds low and high.",
            "figure",
        )
        self.floor_rollbacks = self._counter(
            "floor_rollbacks_total",
            "Times that an earlier version was served again by itself: see docs/promotion.md.",
        )
        self.prequential = self._gauge(
            "prequential", "Quality on the last phase's events, measured before learning from them.", "metric"
        )

        # What is served.
        self.version = self._gauge("version", "Version of the last checkpoint, the one learning goes on from.")
        self.champion_version = self._gauge("champion_version", "Version that is served.")
        self.promotion_held = self._gauge(
            "promotion_held", "1 while new candidates are held back until told otherwise."
        )
        self.catalogue_items = self._gauge("catalogue_items", "Items that can be recommended.")
        self.known_users = self._gauge("known_users", "Users with a history or features.")
        self.freshness_seconds = self._histogram(
            "freshness_seconds",
            "Time from a record's arrival in Kafka to its effect in Redis.",
            FRESHNESS_BUCKETS_S,
            "kind",
        )
        self.fast_path_passed_over = self._counter(
            "fast_path_passed_over_total", "Events that bring too many ids to be served before their phase is learned."
        )
        self.recalibrated = self._gauge(
            "recalibrated", "1 while tastes have turned so that users are served with scales fitted since the version."
        )
        self.checkpoint_bytes = self._gauge("checkpoint_bytes", "Bytes that the last checkpoint added to the disk.")
        self.checkpoint_seconds = self._histogram("checkpoint_seconds", "Duration of saving one.", STAGE_BUCKETS_S)
        self.publish_seconds = self._histogram("publish_seconds", "Duration of publishing a version.", STAGE_BUCKETS_S)
        self.published_vectors = self._gauge("published_vectors", "Vectors of the served version in Redis.", "kind")
        self.redis_repairs = self._counter(
            "redis_repairs_total", "Times that Redis had lost a part of the served version and got it again.", "what"
        )

        # What it all hangs on.
        self.redis_up = self._gauge("redis_up", "1 while Redis answers.")
        self.kafka_up = self._gauge("kafka_up", "1 while the brokers answer.")
        self.disk_up = self._gauge("disk_up", "1 while the state directory takes what has to be written.")
        self.http_requests = self._counter("http_requests_total", "HTTP requests answered.", "route", "code")
        self.build_info = self._gauge("build_info", "Always 1; what is running.", "version", "python")

        # Known label values start at zero, so that the first increase is a rate and not a new series.
        for decision in DECISIONS:
            self.phases.labels(decision)
        for kind in FRESHNESS_KINDS:
            self.freshness_seconds.labels(kind)
        for kind in EXAMPLE_KINDS:
            self.examples.labels(kind)
        for kind in VECTOR_KINDS:
            self.published_vectors.labels(kind)
            self.expired.labels(kind)
        for what in REPAIRED:
            self.redis_repairs.labels(what)
        self.build_info.labels(installed_version("headwater"), platform.python_version()).set(1)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(self._describe(name, "counter", labels, help), help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(self._describe(name, "gauge", labels, help), help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
        full_name = self._describe(name, "histogram", labels, help)
        return Histogram(full_name, help, labels, buckets=buckets, registry=self.registry)

    def _describe(self, name: str, kind: str, labels: tuple[str, ...], help: str) -> str:
        full_name = f"headwater_{name}"
        self.described.append(Described(full_name, kind, labels, help))
        return full_name
