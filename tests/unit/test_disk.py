"""Learning waits for a disk that took no more, and says when it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.disk import LEAST_BYTES, LOOK_S, DiskWatch
from service.durable import NewFile
from service.metrics import Metrics


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def up(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("headwater_disk_up")


def test_a_disk_that_was_never_in_doubt_is_not_tried(tmp_path: Path) -> None:
    metrics = Metrics(CollectorRegistry())
    assert DiskWatch(tmp_path / "not there", metrics).ready(room=10)
    assert up(metrics) == 1


def test_it_waits_until_as_much_as_a_checkpoint_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, ticks, tried = Metrics(CollectorRegistry()), Ticks(), list[int]()
    root = tmp_path / "state"
    watch = DiskWatch(root, metrics, trouble="No space left.", ticks=ticks)
    write = NewFile.write

    def counted(self: NewFile, data: bytes) -> int:
        tried.append(len(data))
        return write(self, data)

    monkeypatch.setattr(NewFile, "write", counted)
    assert not watch.ready(room=3 * LEAST_BYTES)
    assert "cannot be written" in watch.trouble
    assert up(metrics) == 0
    root.mkdir()
    ticks.now += LOOK_S / 2
    assert not watch.ready(room=3 * LEAST_BYTES), "it was tried a moment ago"
    ticks.now += LOOK_S
    assert watch.ready(room=3 * LEAST_BYTES)
    assert sum(tried) == 3 * LEAST_BYTES
    assert (watch.trouble, up(metrics), list(root.iterdir())) == ("", 1, [])
