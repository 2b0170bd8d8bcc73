"""What the daemon answers over HTTP, and what the same verbs answer from a checkpoint when none is running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.checkpoints import CheckpointStore
from service.commands import CommandQueue
from service.config import Config
from service.engine import Engine
from service.errors import NotReady
from service.learning import Learning
from service.live import Live
from service.status import status_of


class DaemonApp:
    """A running daemon, seen from HTTP's threads."""

    def __init__(
        self,
        *,
        config: Config,
        engine: Engine,
        live: Live,
        learning: Learning,
        commands: CommandQueue,
        clock: Callable[[], float],
        awaited: Callable[[], str],
    ) -> None:
        """`awaited` names the server that start is waiting for, or is empty."""
        self._config = config
        self._engine = engine
        self._live = live
        self._learning = learning
        self._commands = commands
        self._clock = clock
        self._awaited = awaited

    def status(self) -> dict[str, Any]:
        """Everything `headwater status` shows."""
        ready, why = self.ready()
        current = self._live.current
        # A store of its own: the engine's belongs to learning.
        store = CheckpointStore(self._engine.state.path, keep_versions=self._config.publish.keep_versions)
        return status_of(self._config, store, self._engine.tombstones, now=self._clock()) | {
            "running": True,
            "ready": ready,
            "why_not_ready": why,
            "why_not_learning": self._learning.disk_trouble,
            "serving": None if current is None else current.version,
        }

    def ready(self) -> tuple[bool, str]:
        """Whether readers find the champion in Redis."""
        if awaited := self._awaited():
            return False, f"{awaited} has not answered yet; it is tried until it does"
        if self._live.current is None:
            trouble = self._learning.redis_trouble
            return False, trouble or "no version is served yet: the first phase has to be learned and published"
        if self._learning.redis_trouble:
            return False, self._learning.redis_trouble
        return True, ""

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        """The best `k` items for a user."""
        return self._ready().recommend(user_id, k=k, include_seen=include_seen)

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        """The `k` items most alike. Raises UnknownId."""
        return self._ready().similar(item_id, k=k)

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        """What the score of a pair is made of. Raises UnknownId."""
        return self._ready().explain(user_id, item_id)

    def _ready(self) -> Live:
        if self._live.current is None:
            raise NotReady("No version is served yet.", hint="Wait for the first phase, or see /readyz.")
        return self._live

    def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Hands a verb to learning and waits for its answer."""
        return self._commands.ask(name, args)


class LocalApp:
    """The champion from disk with nothing running: `similar`, `recommend` and `explain` still answer."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def recommend(self, user_id: str, k: int, include_seen: bool) -> list[dict[str, Any]]:
        """The best `k` items for a user."""
        return self._live.recommend(user_id, k=k, include_seen=include_seen)

    def similar(self, item_id: str, k: int) -> list[dict[str, Any]]:
        """The `k` items most alike. Raises UnknownId."""
        return self._live.similar(item_id, k=k)

    def explain(self, user_id: str, item_id: str) -> dict[str, Any]:
        """What the score of a pair is made of. Raises UnknownId."""
        return self._live.explain(user_id, item_id)
