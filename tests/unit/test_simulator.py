"""The simulated world keeps its laws, and its oracle knows them."""

from __future__ import annotations

import base64
import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from streams.events import EventDecoder, Record
from streams.simulator import Simulator, World, item_id, user_id
from streams.simulator_messages import MODALITIES, USER_FEATURES, digest, messages
from streams.simulator_yardsticks import measure

SMALL = World(seed=5, users=120, items=150, events=4_000, no_repeat=60)


def test_the_same_world_gives_the_same_bytes_and_another_seed_others() -> None:
    def checksum(world: World) -> int:
        value = 0
        for message in messages(Simulator(world)):
            value = digest(value, message)
        return value

    assert checksum(SMALL) == checksum(SMALL)
    assert checksum(SMALL) != checksum(replace(SMALL, seed=6))


def test_a_longer_world_begins_like_a_shorter_one() -> None:
    short, long = (Simulator(replace(SMALL, events=n, drift=0.3, appeal_changes=(700,))) for n in (1_234, 6_000))
    for a, b in zip(messages(short), itertools.islice(messages(long), 10_000), strict=False):
        assert a == b


def test_no_user_meets_an_item_again_soon_and_none_before_its_announcement() -> None:
    simulator = Simulator(SMALL)
    stream = simulator.run()
    announced = np.array([SMALL.items_at(n) for n in stream.number.tolist()])
    assert (stream.item < announced).all()
    last: dict[tuple[int, int], int] = {}
    turn: dict[int, int] = {}
    for user, item in zip(stream.user.tolist(), stream.item.tolist(), strict=True):
        turn[user] = turn.get(user, 0) + 1
        if (user, item) in last:
            assert turn[user] - last[user, item] > SMALL.no_repeat
        last[user, item] = turn[user]


def test_every_user_who_has_joined_appears_and_times_are_steady() -> None:
    stream = Simulator(SMALL).run()
    late = np.arange(SMALL.users, SMALL.users_at(SMALL.events - 200))
    assert len(late) > 10
    assert np.isin(late, stream.user).all()
    np.testing.assert_allclose(np.diff(stream.time), 1 / SMALL.rate, atol=1e-5)


def test_choices_follow_the_oracles_probabilities() -> None:
    """Calibration: over chosen events, the probability given to the likeliest item is how often it is chosen."""
    world = replace(SMALL, noise=0.0, no_repeat=0, actions={"view": 1.0}, events=8_000)
    simulator = Simulator(world)
    expected, hits = [], []
    for block in simulator.blocks():
        utility = simulator.oracle.utilities(int(block.number[0]), block.user)
        mass = np.exp(utility - utility.max(axis=1, keepdims=True))
        mass /= mass.sum(axis=1, keepdims=True)
        expected += mass.max(axis=1).tolist()
        hits += (mass.argmax(axis=1) == block.item).tolist()
    error = np.sqrt(np.mean(np.array(expected) * (1 - np.array(expected))) / len(hits))
    assert abs(np.mean(hits) - np.mean(expected)) < 4 * error


def test_the_oracle_scores_by_id_and_time() -> None:
    simulator = Simulator(SMALL)
    ids = [item_id(k) for k in (3, 0, len(simulator.catalogue) - 1)]
    scores = simulator.oracle.scores(user_id(7), SMALL.time_of(256), ids)
    np.testing.assert_allclose(scores[:2], simulator.oracle.utilities(256, np.array([7]))[0, [3, 0]])
    assert scores[2] == -np.inf
    chances = simulator.oracle.probabilities(user_id(7), SMALL.time_of(256), ids)
    assert chances.sum() == pytest.approx(1)
    assert chances[2] == 0
    with pytest.raises(ValueError, match="not of this world"):
        simulator.oracle.scores("somebody", SMALL.start, ids)


def test_tastes_drift_only_where_they_should_and_regimes_return() -> None:
    who = np.arange(50)
    still = Simulator(replace(SMALL, drift=0.0, regime_switches=(1_000, 3_000))).tastes
    np.testing.assert_allclose(still.at(0, who), still.at(999, who))
    np.testing.assert_allclose(still.at(0, who), still.at(3_500, who), atol=1e-9)
    assert np.abs(still.at(0, who) - still.at(2_000, who)).mean() > 0.1
    moving = Simulator(replace(SMALL, drift=0.5, events=20_000)).tastes
    near, far = ((moving.at(0, who) * moving.at(n, who)).sum(axis=1).mean() for n in (2_000, 20_000))
    assert near > 0.8 > far


def test_appeal_fades_and_changes_at_once_when_told() -> None:
    catalogue = Simulator(replace(SMALL, appeal_changes=(2_000,))).catalogue
    born = SMALL.items  # announced in the stream, before the change
    at = int(catalogue.births[born])
    plain = Simulator(SMALL).catalogue
    faded = plain.appeal(at + int(SMALL.fade))[born] / plain.appeal(at)[born]
    assert faded == pytest.approx(0.5, rel=1e-3)
    before, after = catalogue.appeal(1_999), catalogue.appeal(2_000)
    np.testing.assert_array_equal(before, plain.appeal(1_999))
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.75  # ages still tell something


def test_shares_of_actions_noise_and_missing_modalities_are_as_told() -> None:
    simulator = Simulator(replace(SMALL, events=10_000, noise=0.1, users=400))
    stream = simulator.run()
    share = np.bincount(stream.action) / len(stream)
    np.testing.assert_allclose(share, list(SMALL.actions.values()), atol=0.02)
    assert stream.noise.mean() == pytest.approx(0.1, abs=0.02)
    absent = np.stack(list(simulator.catalogue.absent.values()))
    assert absent.any(axis=0).mean() == pytest.approx(SMALL.missing, abs=0.06)
    assert absent.sum(axis=0).max() == 1
    assert np.isfinite(stream.value[stream.action == 0]).all()
    assert np.isnan(stream.value[stream.action == 1]).all()


def test_messages_are_headwaters_own_events() -> None:
    simulator = Simulator(SMALL)
    stream = simulator.run()
    decoder = EventDecoder(
        modalities=MODALITIES,
        user_features=USER_FEATURES,
        min_time=631_152_000.0,
        max_ahead_s=600.0,
        max_record_bytes=1 << 20,
        max_id_bytes=256,
    )
    items: set[str] = set()
    users: set[str] = set()
    count = 0
    for message in messages(simulator):
        record = Record(message.kind, 0, 0, int(message.time * 1000), message.key, message.value)
        if message.kind == "items":
            item = decoder.item(record)
            index = int(item.item_id[1:])
            items.add(item.item_id)
            assert item.attributes["title"] == simulator.catalogue.titles[index]
            for name, vector in item.features.items():
                np.testing.assert_array_equal(vector, simulator.catalogue.features[name][index])
        elif message.kind == "users":
            users.add(decoder.user(record).user_id)
        else:
            event = decoder.interaction(record)
            assert event.item_id in items
            assert (event.user_id, event.item_id) == (
                user_id(int(stream.user[count])),
                item_id(int(stream.item[count])),
            )
            assert event.time == pytest.approx(stream.time[count], abs=1e-5)
            assert event.event_id == f"e{count}"
            count += 1
    assert count == SMALL.events
    assert 0.3 < len(users) / len(np.unique(stream.user)) < 0.7


def test_features_are_little_endian_float32_in_base64() -> None:
    simulator = Simulator(SMALL)
    first = next(m for m in messages(simulator) if m.kind == "items")
    features = msgspec.json.decode(first.value)["features"]
    name = next(iter(features))
    read = np.frombuffer(base64.b64decode(features[name]), dtype="<f4")
    np.testing.assert_array_equal(read, simulator.catalogue.features[name][0])


def test_a_world_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one user"):
        World(users=0)
    with pytest.raises(ValueError, match="shares"):
        World(noise=1.5)
    with pytest.raises(ValueError, match="no_repeat"):
        Simulator(World(users=4, items=5, arrival_rate=0, no_repeat=50, events=500)).run()


def test_the_shipped_world_can_be_foreseen_and_not_by_popularity_or_content_alone() -> None:
    """The oracle is far above chance; decayed popularity reaches at most 40 % of it, content alone at most 65 %."""
    world = World(events=30_000)
    simulator = Simulator(world)
    ranks = measure(simulator, simulator.run(), first=10_000, every=6)
    best = ranks.ndcg("oracle")
    assert len(ranks.number) > 2_500
    assert 0.25 <= best <= 0.5
    assert ranks.ndcg("popularity") < best
    assert 0.05 * best < ranks.ndcg(ranks.best_decayed()) <= 0.4 * best
    assert 0.1 * best < ranks.ndcg("content") <= 0.65 * best
    assert ranks.ndcg("content_latent") <= 0.65 * best
    assert 0.25 * best < ranks.ndcg("content_best") <= 0.65 * best
