"""When items came: near is a share of the catalogue, and what came at once or never tells nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from models.histories import Histories
from models.memory import EventBatch
from models.overlay import Overlay
from models.scorer import VINTAGE_SCALES
from models.spec import ModelSpec
from models.vintage import knots_of, vintages
from tests.unit.test_overlay import served


def test_products_fall_from_one_to_nothing_as_items_are_further_apart() -> None:
    times = np.linspace(0, 90, 91)
    knots = knots_of(times, 10)
    np.testing.assert_allclose(knots, np.linspace(0, 90, 10))
    h = vintages(times, knots, 12)
    assert h.shape == (91, 12)
    np.testing.assert_allclose(np.square(h).sum(1), 1, atol=1e-6)
    from_30 = h @ h[30]
    assert (np.diff(from_30[30:]) <= 1e-6).all()
    assert from_30[30] > from_30[35] > 0.5 > from_30[39] > 0
    assert not from_30[40:].any()


def test_near_is_a_share_of_the_catalogue_and_no_number_of_days() -> None:
    # nine in ten items came within the last tenth of the time
    times = np.concatenate((np.linspace(0, 900, 100), np.linspace(901, 1000, 900)))
    h = vintages(np.array([100.0, 150.0, 910.0, 960.0]), knots_of(times, 11), 11)
    assert float(h[0] @ h[1]) > 0.9
    assert float(h[2] @ h[3]) == 0


def test_items_before_and_after_all_others_are_as_the_first_and_the_last() -> None:
    knots = knots_of(np.arange(10.0), 4)
    h = vintages(np.array([-5.0, 0.0, 9.0, 99.0]), knots, 4)
    np.testing.assert_array_equal(h[[0, 3]], h[[1, 2]])
    np.testing.assert_array_equal(h[[0, 3]], np.eye(4, dtype=np.float32)[[0, 3]])


def test_what_came_at_once_or_never_says_nothing() -> None:
    assert not vintages(np.full(5, 7.0), knots_of(np.full(5, 7.0), 8), 8).any()
    never = np.array([1.0, np.inf, 2.0])
    h = vintages(never, knots_of(never, 8), 8)
    assert not h[1].any()
    assert h[[0, 2]].any(1).all()
    assert not len(knots_of(np.empty(0), 8))
    assert vintages(never, knots_of(never, 0), 0).shape == (3, 0)


def test_only_rankings_by_dot_product_have_it() -> None:
    assert ModelSpec().vintage_dim == 32
    assert ModelSpec(head="mlp").vintage_dim == 0
    assert ModelSpec(objective="rating").vintage_dim == 0


def test_a_user_of_old_items_is_near_other_old_ones() -> None:
    snapshot, _ = served(vintage=4)
    snapshot.announced[:] = np.arange(snapshot.n_items)
    snapshot._knots = knots_of(snapshot.announced, 4)
    told = torch.from_numpy(snapshot.told(snapshot.likeness_NK, snapshot.announced))
    histories = Histories.empty(1, snapshot.spec.events_read)
    histories.past_BP, histories.weight_BP = np.array([[1, 2]]), np.ones((1, 2), np.float32)
    histories.age_BP = np.ones((1, 2), np.int64)
    alike = np.zeros((snapshot.n_items, snapshot.spec.alike_dim), np.float32)
    alike[:, : told.shape[1]] = told
    readings = snapshot.readings(
        histories, lambda rows, columns: alike[:, columns][rows], snapshot.personal_ND.__getitem__
    )
    assert readings is not None
    assert readings.vintage_BPK.shape == (1, VINTAGE_SCALES.stop - VINTAGE_SCALES.start, 4)
    nearness = readings.vintage_BPK[0] @ told[:, snapshot.spec.likeness_dim :].T
    assert (nearness[:, :4] > 0.5).all()
    assert not nearness[:, -4:].any()


def test_new_items_have_theirs_at_once_whether_announced_or_only_met() -> None:
    snapshot, _ = served(vintage=6)
    spec = snapshot.spec
    start = snapshot.dim - spec.alike_dim + spec.likeness_dim
    overlay = Overlay(snapshot)
    overlay.announce("new", 1e9, {})
    overlay.observe(EventBatch(["1"], ["met"], ["view"], np.array([np.nan], np.float32), np.array([2e9])))
    last = np.eye(spec.vintage_dim, dtype=np.float32)[len(snapshot._knots) - 1]
    share = snapshot.corrections.untouched.vintage
    vectors = overlay.item_vectors(["new", "met"])[:, start : start + spec.vintage_dim]
    np.testing.assert_allclose(vectors, [share * last, last], atol=1e-6)
    # a skip makes an item known, and touches it no more than an announcement does
    first = snapshot.announced.min()
    skip = EventBatch(["1"], ["passed"], ["skip"], np.array([np.nan], np.float32), np.array([2e9]))
    overlay.observe(skip)
    np.testing.assert_allclose(overlay.item_vectors(["passed"])[0, start:][: spec.vintage_dim], share * last, atol=1e-6)
    overlay.observe(replace(skip, times=np.array([first])))  # late
    oldest = np.eye(spec.vintage_dim, dtype=np.float32)[0]
    np.testing.assert_allclose(
        overlay.item_vectors(["passed"])[0, start:][: spec.vintage_dim], share * oldest, atol=1e-6
    )
