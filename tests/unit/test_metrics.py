"""The metrics: names, documentation, and what Prometheus' own linter says of them."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.metrics import Metrics
from service.reference import documented, metrics_table


@pytest.fixture
def metrics() -> Metrics:
    """Every metric with a sample, labels included."""
    metrics = Metrics(CollectorRegistry())
    metrics.rejected.labels("not_json").inc()
    metrics.refusals.labels("not_finite").inc()
    metrics.consumer_lag_records.labels("interactions", "0").set(3)
    metrics.phase_stage_seconds.labels("learn").observe(2.5)
    metrics.quality.labels("ndcg@20", "champion").set(0.4)
    metrics.expired.labels("items").inc()
    metrics.shadow_change.labels("candidate", "low").set(-0.01)
    metrics.floor_change.labels("low").set(-0.01)
    metrics.prequential.labels("ndcg@20").set(0.4)
    metrics.http_requests.labels("/status", "200").inc()
    return metrics


def test_every_metric_is_exposed_under_our_prefix(metrics: Metrics) -> None:
    families = {family.name for family in metrics.registry.collect()}
    assert families == {described.name.removesuffix("_total") for described in metrics.described}
    assert all(name.startswith("headwater_") for name in families)
    assert all(sum(1 for _ in family.samples) for family in metrics.registry.collect())


def test_two_registries_do_not_share(metrics: Metrics) -> None:
    other = Metrics(CollectorRegistry())
    metrics.events.inc(5)
    assert metrics.registry.get_sample_value("headwater_events_total") == 5
    assert other.registry.get_sample_value("headwater_events_total") == 0


def test_known_labels_start_at_zero() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    assert registry.get_sample_value("headwater_phases_total", {"decision": "refused"}) == 0
    assert registry.get_sample_value("headwater_freshness_seconds_count", {"kind": "user"}) == 0
    assert registry.get_sample_value("headwater_freshness_seconds_bucket", {"kind": "user", "le": "30.0"}) == 0


def test_promtool_finds_nothing_to_mend(metrics: Metrics, promtool: str) -> None:
    exposition = generate_latest(metrics.registry)
    done = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_documentation_is_the_code() -> None:
    assert documented("metrics") == metrics_table()
