"""Verbs on a running daemon over its HTTP, and, with none running, on the state directory under its lock: same
result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from service import interventions
from service.app import LocalApp
from service.checkpoints import CheckpointStore
from service.config import Config
from service.connections import redis_sink, user_ids
from service.engine import Engine
from service.errors import NoCheckpoint, NotRunning
from service.hold import Hold
from service.http_client import DaemonClient
from service.interventions import carry_out, reconcile
from service.live import Live, Serving
from service.metrics import Metrics
from service.publication import Publisher
from service.state_dir import StateDirectory
from service.status import status_of, versions_of
from service.tombstones import Tombstones


def status(config: Config) -> dict[str, Any]:
    """From the daemon if one runs, else from the state directory."""
    try:
        return DaemonClient(config).status()
    except NotRunning:
        with StateDirectory.open(config.state_dir, config.namespace, lock=False) as state:
            store = CheckpointStore(state.path, keep_versions=config.publish.keep_versions)
            found = status_of(config, store, Tombstones(state.layout.tombstones), now=time.time())
            return found | {"running": False, "ready": False}


def versions(config: Config) -> dict[str, Any]:
    """Every checkpoint on disk."""
    with StateDirectory.open(config.state_dir, config.namespace, lock=False) as state:
        return {"versions": versions_of(CheckpointStore(state.path, keep_versions=config.publish.keep_versions))}


def rollback(config: Config, *, to: int | None, relearn: bool, dry_run: bool) -> dict[str, Any]:
    """Serve an earlier version again, and hold promotion."""
    return _command(config, "rollback", {"to": to, "relearn": relearn, "dry_run": dry_run})


def promote(config: Config, *, version: int, dry_run: bool) -> dict[str, Any]:
    """Serve this version, and let promotion go on."""
    return _command(config, "promote", {"version": version, "dry_run": dry_run})


def promote_shadow(config: Config, *, dry_run: bool) -> dict[str, Any]:
    """Serve what the shadow has learned, and learn on from there."""
    return _command(config, "promote-shadow", {"dry_run": dry_run})


def pause(config: Config, *, dry_run: bool) -> dict[str, Any]:
    """Hold promotion."""
    return _hold(config, "pause", interventions.pause, dry_run=dry_run)


def resume(config: Config, *, dry_run: bool) -> dict[str, Any]:
    """Let promotion go on."""
    return _hold(config, "resume", interventions.resume, dry_run=dry_run)


def local_app(config: Config) -> LocalApp:
    """The champion of the state directory, loaded. Raises NoCheckpoint before the first phase."""
    with StateDirectory.open(config.state_dir, config.namespace) as state:
        engine = Engine(config=config, state=state, metrics=Metrics(CollectorRegistry()), clock=time.time)
        champion = engine.store.champion()
        if champion is None:
            raise NoCheckpoint(
                f"{state.path} has no version to answer from.", hint="Run the daemon or `headwater replay` first."
            )
        live = Live(user_ids(config))
        live.current = Serving(engine.champion_snapshot(champion))
        return LocalApp(live)


def _hold(config: Config, name: str, verb: Callable[..., dict[str, Any]], *, dry_run: bool) -> dict[str, Any]:
    """Needs neither weights nor Redis: a daemon that starts later finds the hold on disk."""
    try:
        return DaemonClient(config).command(name, {"dry_run": dry_run})
    except NotRunning:
        with StateDirectory.open(config.state_dir, config.namespace) as state:
            return verb(Hold(state.path), dry_run=dry_run)


def _command(config: Config, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return DaemonClient(config).command(name, args)
    except NotRunning:
        return _command_without_daemon(config, name, args)


def _command_without_daemon(config: Config, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    with StateDirectory.open(config.state_dir, config.namespace) as state, redis_sink(config) as sink:
        engine = Engine(
            config=config,
            state=state,
            metrics=Metrics(CollectorRegistry()),
            clock=time.time,
            adopt_shadow=name == "promote-shadow",
        )
        engine.served.publisher = Publisher(
            sink=sink,
            live=Live(),
            fast_path=None,
            store=engine.store,
            config=config.publish,
            metrics=engine.metrics,
            clock=time.time,
            writer=state.identity.state_id,
        )
        if not args.get("dry_run"):
            engine.served.publisher.claim()
            if not engine.adopted:  # else what is served does not fit `[model]`, and is about to be replaced
                reconcile(engine)
        return carry_out(engine, name, args)
