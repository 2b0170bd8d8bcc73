"""Everything that learning owns, and each step of `run_phase` upon it.

One thread uses an engine: learning's, or that of a verb run without a daemon. What it shares with intake and HTTP
goes through `Live`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog
import torch

from models.serving import Snapshot
from service.arrivals import Arrival, ClosedPhase, Offsets
from service.catching_up import CAUGHT_UP, hurry
from service.checkpoints import CheckpointStore
from service.collecting import Collected, apply_content, collect, remember
from service.config import Config
from service.connections import user_ids
from service.crash_points import crash_point
from service.dedupe import SEGMENT
from service.errors import HeadwaterError
from service.expiry import expire
from service.hold import Hold
from service.id_limits import TOO_MANY_IDS, IdLimits
from service.intent import Intent, IntentFile
from service.manifest import CheckpointFacts, Manifest
from service.metrics import Metrics
from service.model_changes import settings
from service.phase_line import line_of
from service.phase_log import PhaseLine, PhaseLog
from service.phase_metrics import count_phase, time_phase
from service.prequential import CHUNK, measure
from service.promotion import Verdict
from service.resuming import Checkpoints
from service.sealed import content_explained, damaged
from service.served import Served
from service.state_dir import StateDirectory
from service.tombstones import Tombstones
from service.trainer import Attempt, State, torch_threads, training_threads
from streams.source_types import TopicPartition
from streams.user_ids import fingerprint

log = structlog.get_logger(__name__)

DAY_S = 86_400.0
HOLD = "hold"
"""An intent's gate where candidates that pass are kept back; else it is `auto`."""


class Engine:
    """Opened on a state directory, it is where the last checkpoint left off."""

    def __init__(
        self,
        *,
        config: Config,
        state: StateDirectory,
        metrics: Metrics,
        clock: Callable[[], float],
        adopt_shadow: bool = False,
    ) -> None:
        """With `adopt_shadow`, a checkpoint of another `[model]` is opened with what its shadow learned, where that
        fits."""
        self.config = config
        torch.set_num_threads(training_threads(config.train))  # also for what is computed between phases
        state.bind_user_key(fingerprint(user_ids(config)))
        self.state = state
        self.metrics = metrics
        self.clock = clock
        self.store = CheckpointStore(state.path, keep_versions=config.publish.keep_versions)
        self.intents = IntentFile(state.layout.intent)
        self.tombstones = Tombstones(state.layout.tombstones)
        self.hold = Hold(state.path)
        self.on_learned: Callable[[Offsets], None] = _nobody
        """Told the offsets of each phase once they are in a checkpoint."""
        self.on_over_limit: Callable[[Sequence[Arrival]], None] = _say_over_limit
        """Told what a phase leaves out for bringing too many ids, before the phase is in a checkpoint."""
        self.limits = IdLimits(config.events)
        self.waiting: Callable[[Offsets], int | None] = _unknown
        """Says how many interactions lie behind these offsets; None where nobody knows."""
        self.cluster_id: str | None = None
        """Kafka's, once a daemon has seen it; None while offsets are those of files or of nothing."""
        self.evaluation_chunk = CHUNK
        self.headline = (f"recall_at_{config.evaluate.k}", f"ndcg_at_{config.evaluate.k}")
        self._open(adopt_shadow=adopt_shadow)

    def _open(self, *, adopt_shadow: bool) -> None:
        for sentence in self.store.sweep():
            log.warning("tidied up after a crash", what=sentence)
        self.parent = self.store.latest()
        self.phase_log = PhaseLog(self.state.layout.phases)
        for sentence in [*self.phase_log.problems, *self.phase_log.repair(self.store.phase_lines())]:
            log.warning("phases.jsonl was mended", what=sentence)
        self.checkpoints = Checkpoints(self.config, self.store, self.tombstones)
        resumed = self.checkpoints.resume(self.parent, adopt_shadow=adopt_shadow)
        self.manifest, self.maxima = resumed.manifest, resumed.maxima
        self.trainer, self.dedupe = resumed.trainer, resumed.dedupe
        self.adopted = resumed.adopted
        """The weights are those of the last checkpoint's shadow; what is served has another `[model]`."""
        self.parent_snapshot = self._sound(self.trainer.snapshot(version=self.parent or 0))
        self.served = Served(self.store, self.phase_log, self.metrics)
        crash_point("start.restored")
        # Looked up when asked for: a verb changes both between two phases, and whoever gave it may look at once.
        self.metrics.version.set_function(lambda: self.parent or 0)
        self.metrics.promotion_held.set_function(lambda: self.held)
        self.metrics.catalogue_items.set(self.trainer.memory.n_items)
        self.metrics.known_users.set(self.trainer.memory.n_users)

    # What learning resumes from

    @property
    def offsets(self) -> Offsets:
        """Next offsets to read, of the last checkpoint."""
        return {} if self.manifest is None else self.manifest.offsets

    @property
    def kafka_offsets(self) -> Offsets:
        """The same, but none where they are of files: nothing that arrives from Kafka is contained then."""
        return {} if self.is_backfill else self.offsets

    @property
    def watermark(self) -> float | None:
        """Event time that the last checkpoint has reached."""
        return None if self.manifest is None else self.manifest.watermark

    @property
    def phase(self) -> int:
        """Number of the next phase."""
        return 1 if self.phase_log.last is None else self.phase_log.last.phase + 1

    @property
    def is_backfill(self) -> bool:
        """Whether the last checkpoint came from files: its offsets say nothing about Kafka's."""
        return self.manifest is not None and self.manifest.cluster_id is None

    @property
    def held(self) -> bool:
        """Whether candidates that pass are kept back, by configuration or by hand."""
        return self.config.promotion.mode == HOLD or self.hold.held

    def interrupted(self) -> Intent | None:
        """The intent of a phase that a crash cut short, to be carried out again."""
        intent = self.intents.read(self.parent)
        if intent is None:
            return None
        intent = self.numbered_anew(intent)
        if self.hold.held and intent.gate != HOLD:
            # Somebody took hold of promotion after the crash: that counts for this phase too.
            intent = msgspec.structs.replace(intent, gate=HOLD)
            self.intents.write(intent)
        return intent

    def numbered_anew(self, intent: Intent) -> Intent:
        """The same phase, under another version if one as new as its own was saved since."""
        version = self.store.reserve(intent.version)
        return intent if version == intent.version else self.intents.with_version(intent, version)

    @property
    def checkpoint_size(self) -> int:
        """Bytes of the last checkpoint's own files: what the next one will take, about."""
        return 0 if self.manifest is None else sum(file.size for file in self.manifest.files.values())

    # 1. Collect

    def intend(self, phase: ClosedPhase) -> Intent:
        """Decides all that is not in the records, and writes it ahead."""
        waiting, events = self.waiting(phase.end), len(phase.interactions)
        if waiting is not None:
            self.metrics.waiting_events.set(waiting)
        train, last = self.config.train, self.phase_log.last
        pace = hurry(
            train.replay_ratio,
            patience=train.replay_patience or math.inf,
            waiting=waiting,
            events=events,
            caught_up=last is not None and bool(last.metrics.get(CAUGHT_UP)),
        )
        intent = Intent(
            parent=self.parent,
            phase=self.phase,
            version=self.store.allot(self.served.least_version),
            start=_plain(phase.start),
            end=_plain(phase.end),
            now=phase.closed_at,
            opened_at=phase.opened_at,
            watermark=phase.watermark,
            replay_ratio=pace.replay_ratio,
            caught_up=pace.caught_up,
            threads=training_threads(train),
            gate=HOLD if self.held else "auto",
        )
        self.intents.write(intent)
        return intent

    def collect(self, phase: ClosedPhase, intent: Intent) -> Collected:
        """Order, duplicates and lateness: decided by event time and offsets alone."""
        assert intent.end == phase.end, "a resumed phase ends where its intent says"
        bound = None if self.watermark is None else self.watermark - self.config.phase.allowed_lateness_s
        memory = self.trainer.memory
        collected = collect(phase, dedupe=self.dedupe, late_before=bound, limits=self.limits, memory=memory)
        if collected.over:
            self.on_over_limit(collected.over)
        return collected

    # 2. Evaluate

    def evaluate(self, collected: Collected, intent: Intent) -> dict[str, float]:
        """How the parent ranks events it has not seen, each with what was known just before it."""
        # a few events at a time are so little work that several threads would mostly wait for one another
        with torch_threads(1):
            return measure(
                self.parent_snapshot,
                collected.batch,
                content=collected.content,
                k=self.config.evaluate.k,
                most=self.config.evaluate.max_per_phase,
                seed=(self.config.seed, intent.phase),
                chunk=self.evaluation_chunk,
            )

    # 3. Learn

    def learn(self, collected: Collected, intent: Intent) -> Attempt:
        """Remembers the phase and fine-tunes on it; the parent's weights are kept until the judge has spoken."""
        stones = apply_content(self.trainer.memory, collected.content, cluster_id=self.cluster_id)
        self.tombstones.add(stones)
        self._forgot = bool(stones)
        self._event_id_chunk = self.dedupe.remember(collected.event_ids)
        positions = remember(self.trainer.memory, collected)
        self._expired = expire(self.trainer.memory, self.config.events)
        return self.trainer.learn(positions, replay_ratio=intent.replay_ratio, threads=intent.threads)

    # 4. Judge

    def judge(self, attempt: Attempt, intent: Intent) -> Verdict | None:
        """What the gate says; None for a phase in which nothing was learned."""
        return self.trainer.judge(attempt, hold=intent.gate == HOLD, earlier=self._earlier)

    def _earlier(self) -> dict[int, Callable[[], State]]:
        """Versions that were served before the champion, and what loads each."""
        champion = self.store.champion()
        older = [] if champion is None else self.store.served_before(champion)
        return {version: partial(self.trainer_state, version) for version in older}

    # 5. Checkpoint

    def checkpoint(
        self,
        phase: ClosedPhase,
        collected: Collected,
        measured: Mapping[str, float],
        attempt: Attempt,
        verdict: Verdict | None,
        intent: Intent,
        stages: Mapping[str, float],
    ) -> PhaseLine:
        """Saves what was decided, offsets and weights together, and makes it what learning resumes from."""
        line = line_of(
            phase, collected, measured, attempt, verdict, intent, stages,
            watermark=self.watermark, topic=self.config.kafka.interactions_topic,
        )  # fmt: skip
        self._save(line, phase.maxima, refused=line.decision in ("refused", "empty"))
        count_phase(self.metrics, line, verdict, self.trainer.memory)
        self.metrics.rejected.labels(reason=TOO_MANY_IDS).inc(len(collected.over))
        self.metrics.replay_ratio.set(intent.replay_ratio)
        self.metrics.expired.labels(kind="items").inc(self._expired.items)
        self.metrics.expired.labels(kind="users").inc(self._expired.users)
        return line

    def _save(self, line: PhaseLine, maxima: Mapping[TopicPartition, float], *, refused: bool) -> None:
        assert line.version is not None
        memory = self.trainer.memory
        rewrite = None
        segments = {SEGMENT: self._event_id_chunk}
        if self._forgot:
            # What was deleted must not stay on disk: a new generation without it replaces the old one.
            rewrite = memory.rewrite()
            rewrite[SEGMENT] = self.dedupe.dump()
            segments = {}
        else:
            segments |= memory.drain()
        facts = CheckpointFacts(
            created_at=self.clock(),
            decision=line.decision,
            reason=line.reason,
            offsets=line.end,
            cluster_id=self.cluster_id,
            topic_ids=self.state.identity.topic_ids,
            **settings(self.config),
            metrics=line.metrics,
            watermark=line.watermark,
            line=line,
            weights_of=self.parent if refused else None,
        )
        self.manifest = self.store.save(
            line.version,
            facts=facts,
            parent=self.parent,
            state={"trainer": self.trainer.state_dict(), "maxima": [[*tp, at] for tp, at in maxima.items()]},
            segments=segments,
            rewrite=rewrite,
        )
        added = sum(map(len, (rewrite or segments).values()))
        self.metrics.checkpoint_bytes.set(added + sum(file.size for file in self.manifest.files.values()))
        self.parent = line.version
        self.maxima = dict(maxima)
        self.phase_log.begin(line)

    # 6. Load back

    def load_back(self, line: PhaseLine) -> Snapshot:
        """A serving snapshot from the saved file, checked against the weights in memory."""
        assert line.version is not None
        saved = self.store.load(line.version).state["trainer"]
        self.parent_snapshot = self.trainer.snapshot(version=line.version, state=saved)
        if not self.trainer.agrees_with(self.parent_snapshot):
            raise HeadwaterError(
                f"Version {line.version} scores differently after it was loaded back from disk.",
                hint="The disk or the memory of this machine is at fault; the served version stays.",
            )
        if line.decision == "promoted":
            self.trainer.crown(self.parent_snapshot)
        return self.parent_snapshot

    # 7. Publish, 8. swap

    def publish_champion(self, version: int) -> None:
        """Publishes the champion on disk, which readers do not have yet. Raises SinkUnavailable."""
        self.served.publish_champion(self.champion_snapshot(version), self.kafka_offsets, self.watermark)

    def serve_published(self, version: int) -> None:
        """The champion is in Redis already, from before a restart: take it up, with what has come since."""
        self.served.unpublished = False
        if not self.served.has(version):
            self.served.take_up(self.champion_snapshot(version), self.kafka_offsets)

    def champion_snapshot(self, version: int) -> Snapshot:
        """The served version's weights over today's catalogue and histories. Raises StateError."""
        with content_explained(self.checkpoints.directory(version)):
            state = self.trainer_state(version)
            return self._sound(self.trainer.snapshot(version=version, state=state))

    def _sound(self, snapshot: Snapshot) -> Snapshot:
        """Weights can be finite and their vectors not: such a version is not served."""
        if not snapshot.finite:
            raise damaged(self.checkpoints.directory(snapshot.version), "its vectors are not finite")
        return snapshot

    def trainer_state(self, version: int) -> State:
        """What a version's checkpoint holds for the trainer, for today's modalities. Raises StateError."""
        state = self.checkpoints.state(version)
        with content_explained(self.checkpoints.directory(version)):
            self.trainer.check(state)
        return state

    def go_on_from(self, manifest: Manifest, state: dict[str, Any]) -> None:
        """Learning resumes from a checkpoint made by hand (`rollback --relearn`)."""
        self.trainer.load_state_dict(state)
        self.manifest = manifest
        self.parent = manifest.version
        self.parent_snapshot = self.trainer.snapshot(version=manifest.version)

    # 9. Commit

    def finish(self, intent: Intent, stages: Mapping[str, float]) -> PhaseLine:
        """Lets go of what the phase no longer needs; returns its line, which is in the log from now on."""
        self.on_learned(intent.end)
        deadline_s = self.config.delete_deadline_days * DAY_S
        overdue = self.tombstones.overdue(now=self.clock(), deadline_s=deadline_s)
        kept = self.store.versions()
        removed = self.store.prune(drop={v for stone in overdue for v in self.tombstones.known_by(stone, kept)})
        if removed:
            log.debug("old versions removed", versions=removed)
        self.tombstones.complete(self.store.versions())
        time_phase(self.metrics, stages)
        return self.phase_log.end(stages)


def _unknown(_: Offsets) -> int | None:
    return None


def _nobody(_learned: Offsets) -> None:
    """No intake listens: replay, and verbs without a daemon."""


def _say_over_limit(over: Sequence[Arrival]) -> None:
    """Where there are no dead letters: replay."""
    log.warning("records bring too many ids and are left out", records=len(over))


def _plain(offsets: Offsets) -> dict[str, dict[int, int]]:
    return {topic: dict(partitions) for topic, partitions in offsets.items()}
