"""What is served turns bad although every candidate passed the gate."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.frozen import Frozen
from models.heldout import HeldOut
from models.serving import Snapshot
from service.checkpoints import CheckpointStore
from tests.faults.stage import FIRST, PER_PHASE, Outcome, Stage, fault

SPOILED_PHASES = 9


@fault("Quality", "served version far below decayed popularity")
def below_the_floor(stage: Stage) -> Outcome:
    place = stage.place()
    # A gate that lets everything pass, which small windows make of any gate.
    place.configure(promotion={"tolerance": 0.99, "min_events": 100, "windows": 5})
    run = stage.serving(place, before=partial(spoil_after, FIRST))
    good = CheckpointStore(place.state_dir, keep_versions=20).champion()
    with run.fault():
        run.send(SPOILED_PHASES * PER_PHASE)
    run.daemon.wait_until("a rollback", lambda: run.daemon.metric("headwater_floor_rollbacks_total") >= 1)
    store = CheckpointStore(place.state_dir, keep_versions=20)
    origins = {m.weights_of for m in store.versions() if m.rolled_back}
    assert good is not None
    assert origins
    assert all(version is not None and version <= good for version in origins), (
        f"rolled back to {origins}, not to {good}"
    )
    assert run.daemon.metric("headwater_promotion_held") == 0, "nobody has to let promotion go on"
    return run.recovered(
        "served the best earlier version again, went on learning from it", said="rolled back by itself"
    )


def spoil_after(first: int) -> None:
    """Whatever has learned from more than the `first` events predicts half as well as it would."""
    build, score = Snapshot.__init__, HeldOut.by_model

    def noted(self: Snapshot, frozen: Frozen, *rest: Any, **more: Any) -> None:
        build(self, frozen, *rest, **more)
        self.spoiled = frozen.popularity.position > first  # type: ignore[attr-defined]

    def spoiling(self: HeldOut, snapshot: Snapshot) -> NDArray[np.float64]:
        scores = score(self, snapshot)
        return 0.5 * scores if snapshot.spoiled else scores  # type: ignore[attr-defined]

    Snapshot.__init__ = noted  # type: ignore[method-assign]
    HeldOut.by_model = spoiling  # type: ignore[method-assign]
