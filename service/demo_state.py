"""What the demo keeps in its directory, so that it can be stopped at any moment and go on the next time.

The embedded broker forgets everything when it stops, so the next demo sends the same simulated stream again from its
beginning. That is sound because everything follows from the seed: the messages, their order, and so (there is one
producer, and a key decides its partition) each record's offset. Before the daemon goes on, the demo checks that the
stream is, byte for byte, the one that it had sent: `digest`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from service.durable import replace_file
from service.errors import OtherFormat, StateError
from service.sealed import seal
from service.state_dir import Layout, StateDirectory
from streams.simulator import World
from streams.simulator_messages import MODALITIES, USER_FEATURES

CLUSTER_ID = "headwater-demo"
"""The embedded broker of every demo calls itself so: offsets mean the same in each."""
NAMESPACE = "demo"
TOPICS: dict[str, str] = {"interactions": "interactions", "items": "items", "users": "users"}
"""Kind of message → topic."""
PARTITIONS = 1
"""With one partition a backlog is read in the order of time, and an interaction's offset is the number of its event."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What has been sent: `demo.json`."""

    world: dict[str, Any]
    """Laws of the world, but how long it goes on: a longer one begins alike."""
    sent: int = 0
    """No interaction of this number or above has been sent so far."""
    checked: int = 0
    """Messages before interaction number `checked` give `digest`."""
    digest: int = 0


@dataclass(frozen=True, kw_only=True)
class DemoDirectory:
    """The demo's directory: the daemon's state, and beside it what only the demo needs."""

    root: Path

    @property
    def config(self) -> Path:
        """Configuration of the daemon, which other commands can be given too."""
        return self.root / "demo.toml"

    @property
    def progress(self) -> Path:
        return self.root / "demo.json"

    @property
    def report(self) -> Path:
        """The closing summary, for programs."""
        return self.root / "demo-report.json"

    @property
    def logs(self) -> Path:
        """What the servers and the daemon say."""
        return self.root / "logs"

    @property
    def phases(self) -> Path:
        return Layout(self.root).phases

    def open(self, world: World) -> Progress:
        """Create the directory, or find out how far the last demo in it came.

        Raises `StateLocked` while another demo or daemon uses it, `StateError` if it belongs to another world or was
        made by another release.
        """
        try:
            return self._open(world)
        except OtherFormat as error:
            raise self._stranger("was made by another release of Headwater") from error

    def _open(self, world: World) -> Progress:
        with StateDirectory.open(self.root, NAMESPACE):
            self.logs.mkdir(exist_ok=True)
            progress = self._read_progress()
            if progress is None:
                if Layout(self.root).latest.exists():
                    raise self._stranger("holds a state that no demo has made")
                progress = Progress(world=_laws(world))
                self.write_progress(progress)
            laws = {**_laws(world), "start": progress.world.get("start"), "rate": progress.world.get("rate")}
            if laws != progress.world:
                names = sorted(name for name in laws if laws[name] != progress.world.get(name))
                raise self._stranger(f"was made with another {' and '.join(names)}")
        return progress

    def world(self, progress: Progress, *, events: int) -> World:
        """The world that has been begun here, `events` long."""
        laws: dict[str, Any] = {
            name: tuple(law) if isinstance(law, list) else law for name, law in progress.world.items()
        }
        return World(**(laws | {"events": events}))

    def write_progress(self, progress: Progress) -> None:
        """Replace `demo.json`, in one step."""
        replace_file(self.progress, msgspec.json.format(msgspec.json.encode(progress)))

    def adopt_topics(self) -> None:
        """Let the state forget the ids of its topics: the embedded broker gives new ones to the same records.

        Call it only once the stream is known to be the same; the daemon's own check would refuse the new ids.
        """
        with StateDirectory.open(self.root, NAMESPACE) as state:
            if state.identity.cluster_id not in (None, CLUSTER_ID):
                raise self._stranger("belongs to another Kafka cluster")
            identity = msgspec.structs.replace(state.identity, topic_ids={})
            replace_file(state.layout.identity, seal(identity))

    def write_config(self, *, broker: str, redis: str, http_port: int, seed: int, threads: int) -> None:
        """Write the daemon's configuration for this run's addresses."""
        tables: dict[str, Mapping[str, Any]] = {
            "": {"namespace": NAMESPACE, "state_dir": str(self.root.absolute()), "seed": seed},
            "kafka": {
                "bootstrap_servers": broker,
                **{f"{kind}_topic": topic for kind, topic in TOPICS.items()},
            },
            "redis": {"url": redis},
            "phase": {"max_events": PHASE_EVENTS, "max_wait_s": 10},
            "model": {"dim": 32},
            "model.modalities": MODALITIES,
            "model.user_features": USER_FEATURES,
            "train": {"threads": threads},
            "evaluate": {"max_per_phase": MEASURED_EVENTS},
            "publish": {"buckets": 16, "grace_s": 10, "keep_versions": 3},
            "http": {"host": "127.0.0.1", "port": http_port},
            "log": {"format": "json"},
        }
        lines = ["# Written by `headwater demo` for this run's servers.\n"]
        for name, table in tables.items():
            # What JSON says of strings, numbers and truth values, TOML reads alike.
            lines += [f"\n[{name}]\n"] if name else []
            lines += [f"{key} = {json.dumps(value)}\n" for key, value in table.items()]
        replace_file(self.config, "".join(lines).encode())

    def _read_progress(self) -> Progress | None:
        try:
            return msgspec.json.decode(self.progress.read_bytes(), type=Progress)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise self._stranger("has a damaged demo.json") from error

    def _stranger(self, what: str) -> StateError:
        return StateError(f"{self.root} {what}.", hint="Name another --state-dir, or remove this one to start anew.")


PHASE_EVENTS = 4_000
"""Interactions in a phase of the demo."""
MEASURED_EVENTS = 1_000
"""Of those, a uniform sample that the parent model ranks."""


def _laws(world: World) -> dict[str, Any]:
    laws = {name: value for name, value in asdict(world).items() if name != "events"}
    return dict(msgspec.json.decode(msgspec.json.encode(laws)))
