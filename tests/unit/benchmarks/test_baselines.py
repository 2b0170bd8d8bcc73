"""Test-then-train over a stream: nobody sees what is not past, and the plain methods are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.baselines import ContentMean, DecayedPopularity, ItemKnn, Means, Popularity
from benchmarks.outcome import Outcome
from benchmarks.prequential import Past, evaluate
from benchmarks.stream import Stream
from tests.unit.benchmarks.samples import columns, past_of, told

# -- the stream


def test_a_folder_becomes_columns_in_order_of_time(stream: Stream) -> None:
    assert (len(stream), stream.users) == (240, 12)
    assert (np.diff(stream.t) >= 0).all()
    assert set(stream.features) == {"text", "image"}
    assert stream.features["text"].shape == (stream.items, 3)
    assert stream.features["text"].sum(1).tolist() == [1.0] * stream.items


def test_a_limit_leaves_out_the_items_of_later_events(folder: Path) -> None:
    few = Stream.of_folder(folder, 5)
    assert (len(few), few.items) == (5, len(set(few.i.tolist())))


def test_a_folder_without_events_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no"):
        Stream.of_folder(tmp_path)


def test_no_cut_parts_a_basket(stream: Stream) -> None:
    cuts = stream.cuts(0.2, 50)
    assert (cuts[0], cuts[-1]) == (0, len(stream))
    assert all(stream.t[cut] > stream.t[cut - 1] for cut in cuts[1:-1])


# -- the walk


class Witness:
    """Writes down what it could know whenever it is asked."""

    def __init__(self, past: Past) -> None:
        self.past = past
        self.asked: list[tuple[int, float, float, bool]] = []

    def event(self, j: int) -> None:
        assert self.past.u[j] >= 0

    def train(self, a: int, b: int) -> None:
        assert self.past.n == b > a

    def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:
        past = self.past
        known = past.t[: past.n]
        announced = past.announced[np.isfinite(past.announced)]
        hidden = bool(np.isnan(past.t[past.n :]).all() and (past.i[past.n :] == -1).all())
        self.asked.append((past.n, t - known.max(initial=-np.inf), t - announced.max(initial=-np.inf), hidden))
        assert all(past.u[j] == u for j in history)
        untold = ~np.isfinite(past.announced)
        assert not any(table[untold].any() for table in past.features.values())
        return np.zeros(past.ni)


def test_nobody_sees_what_is_not_past(stream: Stream) -> None:
    witnesses: list[Witness] = []

    def make(past: Past) -> Witness:
        witnesses.append(Witness(past))
        return witnesses[-1]

    evaluate(stream, make, phases=7)
    asked = np.array(witnesses[0].asked)
    assert len(asked) > 20
    assert (asked[:, 1] > 0).all(), "an event of the same basket was known"
    assert (asked[:, 2] >= 0).all(), "an item was known before its announcement"
    assert asked[:, 3].all()


class Fixed(Witness):
    """The same scores for everyone: the lower the number, the better."""

    def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:
        return -np.arange(self.past.ni, dtype=float)


def test_ranks_are_among_candidates_and_repeats_are_left_out() -> None:
    #        warm-up               0 is the user's own; 2 again; 3 is new to all
    stream = columns([(0, 0), (1, 1), (1, 2), (0, 2), (0, 2), (0, 3), (1, 0)])
    outcome = evaluate(stream, Fixed, warm=3 / 7, phases=2, catalogue="seen")
    assert outcome.event == [3, 5, 6]
    assert outcome.rank == [1.0, np.inf, 0.0]  # 1 is better than 2; a miss; the user had all but 0 and 3
    assert outcome.cold == [False, True, False]
    announced = replace(stream, announced=np.array([0.0, 0.0, 0.0, 4.0]))
    outcome = evaluate(announced, Fixed, warm=3 / 7, phases=2)
    assert outcome.rank == [1.0, 1.0, 0.0]
    assert outcome.rank_among_cold == [0.0]


def test_skips_are_known_but_never_ranked() -> None:
    stream = columns([(0, 0), (1, 1), (0, 1), (1, 0)])
    positive = np.array([True, True, False, True])
    assert evaluate(replace(stream, positive=positive), Fixed, warm=0.5, phases=1).event == [3]


def test_broken_scores_are_an_error(stream: Stream) -> None:
    class Broken(Witness):
        def row(self, u: int, history: list[int], t: float) -> NDArray[np.float64]:
            return np.full(self.past.ni, np.nan)

    with pytest.raises(ValueError, match="not finite"):
        evaluate(stream, Broken)


def test_a_sample_is_compared_on_the_same_events_only(stream: Stream) -> None:
    whole = evaluate(stream, Popularity, phases=8)
    sample = evaluate(stream, Popularity, phases=8, ranked_share=0.3)
    assert len(sample.rank) < len(whole.rank)
    assert sum(sample.cold) == sum(whole.cold) > 0
    beside = sample.beside(whole)
    assert beside["recall"] == pytest.approx(whole.figures()["recall"])
    assert (beside["warm_change"], beside["cold_change"], beside["recall_se"]) == (0, 0, 0)


def test_the_mean_change_is_added_to_the_figures_of_the_whole() -> None:
    whole = Outcome(k=1, catalogue="seen", events=9, warm_events=4, event=[1, 2, 3, 4], rank=[0, 0, 5, 5])
    whole.cold = [False] * 4
    part = Outcome(k=1, catalogue="seen", events=9, warm_events=4, event=[1, 3], rank=[5, 5], cold=[False] * 2)
    beside = part.beside(whole)
    assert beside["recall"] == pytest.approx(0.5 - 0.5)
    assert beside["ndcg"] == pytest.approx(0.5 - 0.5)


# -- plain methods


def test_popularity_counts_and_decays() -> None:
    stream = columns([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)])
    past = past_of(stream)
    assert told(Popularity(past), past, 5).counts.tolist() == [3, 2]
    past = past_of(stream)
    scores = told(DecayedPopularity(past, half_life=1), past, 5).row(0, [], 0.0)
    assert scores[1] / scores[0] == pytest.approx((1 + 1 / 2) / (1 / 4 + 1 / 8 + 1 / 16))


def test_means_are_shrunken_and_say_nothing_of_who_is_new() -> None:
    stream = replace(columns([(0, 0), (1, 1), (0, 1)]), v=np.array([4.0, 2.0, np.nan], np.float32))
    past = past_of(stream)
    means = told(Means(past), past, 3)
    item = -1.0 / 26  # 2 is 1 below the mean of 4 and 2
    user = (-1.0 - item) / 11
    assert means.rate(1, 1, [], 0.0) == pytest.approx(3 + item + user)
    assert means.rate(0, 0, [], 0.0) == pytest.approx(3.0)  # what came first was the mean itself


def test_item_knn_is_shrunken_cosine_of_users_in_common() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2), (0, 0)]
    stream = columns(pairs)
    past = past_of(stream)
    knn = told(ItemKnn(past, refit=0), past, len(pairs))
    matrix = np.zeros((3, 3))
    matrix[tuple(zip(*pairs, strict=True))] = 1
    common = matrix.T @ matrix
    np.testing.assert_array_equal(knn._common, common)
    norm = np.sqrt(np.outer(np.diag(common), np.diag(common)))
    similarity = common / (norm + 20 / norm)
    np.fill_diagonal(similarity, 0)
    scores = knn.row(2, [4, 5], 0.0)
    np.testing.assert_allclose(scores - knn.prior(), similarity[0] + similarity[2], rtol=1e-5)


def test_item_knn_is_as_old_as_its_last_refit() -> None:
    stream = columns([(0, 0), (0, 1), (1, 0), (1, 1)])
    past = past_of(stream)
    knn = told(ItemKnn(past, refit=4), past, 2)
    knn.train(0, 2)
    before = knn.row(1, [0], 0.0) - knn.prior()
    told(knn, past, 4).train(2, 4)
    np.testing.assert_array_equal(knn.row(1, [0], 0.0) - knn.prior(), before)
    knn.train(4, 4)
    knn.train(4, 4)
    assert (knn.row(1, [0], 0.0) - knn.prior())[1] > before[1]


def test_content_prefers_what_is_like_the_users_items(stream: Stream) -> None:
    past = past_of(stream)
    content = told(ContentMean(past), past, 50)
    item = int(stream.i[0])
    scores = content.row(0, [0], 0.0)
    alike = stream.features["text"] @ stream.features["text"][item] > 0
    same = (stream.features["image"] == stream.features["image"][item]).all(1)
    assert scores[alike & same].min() > scores[~alike].max()


def test_where_a_share_of_warm_events_is_ranked_each_stands_for_others() -> None:
    outcome = Outcome(
        k=1, catalogue="seen", events=9, warm_events=8, event=[1, 2, 3, 7],
        rank=[0, 5, 5, 0], cold=[False, False, True, True], phase=[1, 1, 1, 3],
    )  # fmt: skip
    first, nothing, last = outcome.recall_by_phase()
    assert first == pytest.approx(4 / 9)
    assert np.isnan(nothing)
    assert last == 1
