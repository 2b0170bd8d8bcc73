"""Changing what is served by hand, or to mend Redis: an earlier version's weights over today's catalogue, as a new
version.

Offsets never go back: the new version is for serving, and learning goes on from its own latest checkpoint (but for
`--relearn`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from service.engine import Engine
from service.errors import CommandRefused
from service.hold import Hold
from service.manifest import CheckpointFacts, Manifest
from service.model_changes import has_other_inputs, settings
from service.trainer import State

log = structlog.get_logger(__name__)


def carry_out(engine: Engine, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """One verb, on the thread that owns `engine`. Raises CommandRefused or NoCheckpoint with nothing changed."""
    dry_run = bool(args.get("dry_run", False))
    if name == "rollback":
        return rollback(engine, to=args.get("to"), relearn=bool(args.get("relearn", False)), dry_run=dry_run)
    if name == "promote":
        return promote(engine, version=int(args["version"]), dry_run=dry_run)
    if name == "promote-shadow":
        return promote_shadow(engine, dry_run=dry_run)
    if name == "pause":
        return pause(engine.hold, dry_run=dry_run)
    if name == "resume":
        return resume(engine.hold, dry_run=dry_run)
    raise CommandRefused(f"{name!r} is no verb.", hint="There are rollback, promote, promote-shadow, pause and resume.")


def rollback(engine: Engine, *, to: int | None, relearn: bool, dry_run: bool) -> dict[str, Any]:
    """Serves version `to` again (None: the one served before this), and holds promotion until told otherwise."""
    champion = _champion(engine)
    target = _before(engine, champion) if to is None else engine.store.manifest(to).version
    if target == champion:
        raise CommandRefused(
            f"Version {target} is the one that is served.", hint="See `headwater versions` for others."
        )
    said = {
        "verb": "rollback",
        "from": champion,
        "to": target,
        "relearn": relearn,
        "promotion": "held",
        "dry_run": dry_run,
    }
    if dry_run:
        return said
    engine.trainer_state(target)  # raises what is wrong with it, before anything is held or written
    engine.hold.set(f"rolled back from version {champion} to {target}")
    version = serve_again(
        engine, target, reason=f"Rolled back by hand to version {target}.", rolled_back=True, relearn=relearn
    )
    return {**said, "version": version, "published": not engine.served.unpublished}


def roll_back_below_floor(engine: Engine) -> None:
    """Serves the earlier version that did surely better while the champion was below the floor, and goes on learning
    from it; promotion is not held, so that nobody has to let it go on."""
    target, champion = engine.trainer.floor.due, engine.store.champion()
    if target is None or champion is None or engine.held:
        return
    reason = f"Version {champion} stayed below decayed popularity, and version {target} does better on the same events."
    version = serve_again(engine, target, reason=reason, rolled_back=True, relearn=True)
    engine.metrics.floor_rollbacks.inc()
    log.warning("rolled back by itself", version=version, weights_of=target, instead_of=champion, reason=reason)


def promote(engine: Engine, *, version: int, dry_run: bool) -> dict[str, Any]:
    """Serves `version`, whatever the judge said of it, and lets promotion go on."""
    manifest = engine.store.manifest(version)
    if manifest.decision in ("refused", "empty"):
        raise CommandRefused(
            f"Version {version} was {manifest.decision}: its checkpoint holds its parent's weights, not a candidate's.",
            hint="Promote a version that was held or promoted; see `headwater versions`.",
        )
    engine.trainer.check_fits(manifest.spec)
    target = manifest.version
    said = {"verb": "promote", "from": engine.store.champion(), "to": target, "promotion": "on", "dry_run": dry_run}
    if dry_run:
        return said
    new = serve_again(engine, target, reason=f"Promoted by hand from version {target}.")
    engine.hold.release()
    return {**said, "version": new, "published": not engine.served.unpublished}


def promote_shadow(engine: Engine, *, dry_run: bool) -> dict[str, Any]:
    """Serves what the shadow has learned, goes on learning from it, and lets promotion go on."""
    shadow = engine.trainer.shadow
    if shadow is None and not engine.adopted:
        raise CommandRefused("There is no shadow.", hint="Say in [shadow] what one would have otherwise.")
    if shadow is not None and shadow.model != engine.config.model:
        raise CommandRefused(
            "The shadow's [model] is another than the one that is served, and its weights do not fit there.",
            hint="Stop the daemon, move the keys of [shadow.model] and [shadow.train] into [model] and [train], "
            "run `headwater promote-shadow` again, and start it.",
        )
    champion = _champion(engine)
    said = {"verb": "promote-shadow", "from": champion, "promotion": "on", "dry_run": dry_run}
    if dry_run:
        return said
    reason = f"The shadow was promoted by hand over version {champion}."
    state = engine.trainer.state_dict() if engine.adopted else engine.trainer.with_shadow()
    version = _serve(engine, state, reason=reason, relearn=True)
    engine.hold.release()
    advice = "Move the keys of [shadow.train] into [train]: learning goes on with those of [train]."
    return {
        **said,
        "version": version,
        "published": not engine.served.unpublished,
        **({} if engine.adopted else {"next": advice}),
    }


def pause(hold: Hold, *, dry_run: bool) -> dict[str, Any]:
    """Holds promotion from the next phase on; learning goes on."""
    if not dry_run:
        hold.set("paused by hand")
    return {"verb": "pause", "promotion": "held", "dry_run": dry_run}


def resume(hold: Hold, *, dry_run: bool) -> dict[str, Any]:
    """Lets candidates that pass be promoted again."""
    if not dry_run:
        hold.release()
    return {"verb": "resume", "promotion": "on", "dry_run": dry_run}


def serve_again(engine: Engine, target: int, *, reason: str, rolled_back: bool = False, relearn: bool = False) -> int:
    """Saves and publishes the weights of `target` over today's catalogue, histories and deletions; returns the new
    version."""
    trainer_state = engine.trainer.with_weights_of(engine.trainer_state(target))
    return _serve(engine, trainer_state, reason=reason, weights_of=target, rolled_back=rolled_back, relearn=relearn)


def _serve(
    engine: Engine,
    trainer_state: State,
    *,
    reason: str,
    weights_of: int | None = None,
    rolled_back: bool = False,
    relearn: bool = False,
) -> int:
    """Saves `trainer_state` as a version of its own and publishes it; with `relearn`, learning goes on from it."""
    assert engine.parent is not None
    assert engine.manifest is not None
    latest = engine.manifest
    version = engine.store.allot(engine.served.least_version)
    facts = CheckpointFacts(
        created_at=engine.clock(),
        decision="promoted",
        reason=reason,
        weights_of=weights_of,
        rolled_back=rolled_back,
        **_of_today(engine, latest),
    )
    manifest = engine.store.save(
        version,
        facts=facts,
        parent=engine.parent,
        state={"trainer": trainer_state, "maxima": [[*tp, at] for tp, at in engine.maxima.items()]},
        resumable=relearn,
    )
    engine.trainer.floor.clear()
    if relearn:
        engine.go_on_from(manifest, trainer_state)
    snapshot = engine.trainer.snapshot(version=version, state=trainer_state)
    engine.trainer.crown(snapshot)
    engine.served.publish(snapshot, latest.offsets, latest.watermark)
    log.info("serving other weights by hand, or to mend Redis", version=version, weights_of=weights_of, reason=reason)
    return version


def reconcile(engine: Engine) -> str | None:
    """Makes Redis hold what the disk says is served: disk is truth, Redis is derived. Returns what was done, if
    anything.

    Raises SinkUnavailable if Redis is away.
    """
    publisher = engine.served.publisher
    champion = engine.store.champion()
    if publisher is None or champion is None:
        return None
    if has_other_inputs(engine.config, engine.store.manifest(champion).spec):
        serve_again(engine, champion, reason=f"The modalities or user features of version {champion} were changed.")
        return f"version {champion} had other modalities or user features; it was carried over and published again."
    pointer, current = publisher.sink.pointer(), publisher.live.current
    ours = pointer is not None and pointer.version == champion and pointer.writer == publisher.writer
    if ours:
        engine.serve_published(champion)
    if ours or (
        pointer is None and current is not None and current.version == champion and not engine.served.unpublished
    ):
        return publisher.mend()
    if pointer is not None and pointer.version >= champion:
        whose = "which is not on disk any more" if pointer.writer == publisher.writer else "of another state directory"
        serve_again(engine, champion, reason=f"The namespace was at version {pointer.version}, {whose}.")
        return f"the pointer was at version {pointer.version}, {whose}; took over with version {champion}'s weights."
    engine.publish_champion(champion)
    return f"version {champion} was not in Redis yet; published it."


def _of_today(engine: Engine, latest: Manifest) -> dict[str, Any]:
    kept = ("offsets", "cluster_id", "topic_ids", "watermark")
    return {name: getattr(latest, name) for name in kept} | settings(engine.config)


def _champion(engine: Engine) -> int:
    champion = engine.store.champion()
    if champion is None:
        raise CommandRefused("No version is served yet.", hint="Wait for the first phase.")
    return champion


def _before(engine: Engine, champion: int) -> int:
    """The version served before the champion: what went live last among the older ones, other weights than today's."""
    older = engine.store.served_before(champion)
    if not older:
        raise CommandRefused("There is no earlier version to go back to.", hint="See `headwater versions`.")
    return max(older)
