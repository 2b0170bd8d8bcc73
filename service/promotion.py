"""The gate: whether a freshly trained candidate may replace the champion that is served.

Both score the same held-out events, which neither has learned from, and so do popularity and decayed popularity. Scores
are paired by event and the question is one-sided: are we sure that the candidate is worse than the tolerance allows?
`docs/promotion.md` explains the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Pooled = dict[str, Tensor]
"""A window's paired relative differences, by cluster of events: `sums` and `counts`, both (G,) float64."""

LEAST_CLUSTERS = 20
"""Fewer independent differences than this prove nothing: their spread is itself a guess."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Scores of held-out events, (n,) each and in the same order; higher is better (see `docs/promotion.md` for which).

    Raises `ValueError` where the lengths differ.
    """

    candidate: Floats
    champion: Floats | None
    """`None` before the first version is served."""
    popularity: Floats
    decayed_popularity: Floats
    learned: tuple[Floats, Floats] | None = None
    """Candidate's and champion's scores by what their weights have learned alone, where these differ."""
    users: NDArray[np.int64] | None = None
    """Whose event each is: one user's events go well or badly together, and count as one draw. `None`: all apart."""
    weights_finite: bool = True
    """Whether all of the candidate's weights are finite."""

    def __post_init__(self) -> None:
        """Check that every score speaks of the same events."""
        arrays = (self.champion, self.popularity, self.decayed_popularity, *(self.learned or ()), self.users)
        if any(array is not None and len(array) != len(self.candidate) for array in arrays):
            raise ValueError("The scores of a held-out window differ in length; score the same events by all.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What the gate decided, why, and what it remembers for the next phase."""

    decision: Literal["promoted", "refused", "held"]
    slug: str
    """Stable label for metrics; promoted: `passed`, `no_champion`, `few_events`; held: `hold`; refused: `not_finite`,
    `worse`, `below_popularity`."""
    reason: str
    """One sentence with the figures."""
    metrics: dict[str, float] = field(default_factory=dict)
    """`gate_*` figures; absent where they could not be computed."""
    pooled: list[Pooled] = field(default_factory=list)
    """Windows of promoted phases, newest first: plain containers that go into the checkpoint as they are."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The rule, a pure function of a window and the pooled ones; its fields are the `[promotion]` table.

    With d the candidate's paired differences to the champion, relative to the champion's mean score, a candidate is
    `worse` when

    - its own window alone says mean(d) < −tolerance at ten times the odds (0.995 for a confidence of 0.95), of the
      whole score or of what the weights have learned alone: what is counted beside them hides no broken weights; or
    - with the latest promoted windows pooled until there are `min_events`, mean(d) < −tolerance at `confidence`
      *and* mean(d) < 0 at five times the odds (0.99), and its own window's mean agrees.

    It is `below_popularity` when popularity or decayed popularity beats it at `confidence`, and pooled mean(d) < 0 as
    above.

    So a candidate as good as the champion is refused by chance at most 0.4 · (1 − confidence) of the times: 2 % at
    0.95.
    """

    tolerance: float = 0.02
    confidence: float = 0.95
    min_events: int = 400
    windows: int = 8

    def judge(self, window: Window, pooled: Sequence[Pooled] = (), *, hold: bool = False) -> Verdict:
        """Decide on one candidate; with `hold`, one that passes is `held` and not promoted."""
        kept = list(pooled)
        n = len(window.candidate)
        # 1. A broken model is refused before anything is averaged.
        broken = n - int(np.isfinite(window.candidate).sum())
        if broken or not window.weights_finite:
            what = f"{broken} of {n} held-out scores" if broken else "some weights"
            reason = f"In the candidate, {what} are not finite."
            return Verdict(decision="refused", slug="not_finite", reason=reason, pooled=kept)
        metrics = _means(window)
        # 2. Nothing to compare with: no champion yet, or one that is itself broken.
        if window.champion is None or not np.isfinite(window.champion).all():
            return _passed("no_champion", "There is no champion to compare with.", metrics, kept, kept, hold)
        own = _relative_differences(window.candidate, window.champion, window.users)
        sample = self._pool(own, kept)
        newest = [own, *kept][: self.windows - 1]
        clear = _upper(own, 1 - (1 - self.confidence) / 10)
        bound = _upper(sample, self.confidence)
        metrics |= _finite(
            gate_change=_mean(own),
            gate_change_bound=clear,
            gate_pooled_events=_events(sample),
            gate_pooled_change=_mean(sample),
            gate_pooled_bound=bound,
        )
        # 3. Clearly worse by its own window: no past can excuse that, and nothing that is counted beside the weights.
        if clear < -self.tolerance:
            return Verdict(
                decision="refused", slug="worse", reason=self._worse(own, clear), metrics=metrics, pooled=kept
            )
        if window.learned is not None:
            learned = _relative_differences(*window.learned, window.users)
            clear = _upper(learned, 1 - (1 - self.confidence) / 10)
            metrics |= _finite(gate_learned_change=_mean(learned), gate_learned_bound=clear)
            if clear < -self.tolerance:
                what = "By what its weights have learned alone, the candidate"
                reason = self._worse(learned, clear, what=what)
                return Verdict(decision="refused", slug="worse", reason=reason, metrics=metrics, pooled=kept)
        # 4. Too little evidence refuses nobody: a coin must not decide what is served.
        if _events(sample) < self.min_events or _clusters(sample) < LEAST_CLUSTERS:
            reason = (
                f"{_events(sample):.0f} held-out events of {_clusters(sample)} users are too few to tell "
                f"({self.min_events} of {LEAST_CLUSTERS} users are needed)."
            )
            return _passed("few_events", reason, metrics, newest, kept, hold)
        # 5. Worse with the past pooled; one that is below popularity gets no tolerance.
        surely_worse = _mean(own) < 0 and _upper(sample, 1 - (1 - self.confidence) / 5) < 0
        floor = self._better_baseline(window)
        metrics["gate_below_popularity"] = float(bool(floor))
        if surely_worse and (floor or bound < -self.tolerance):
            slug = "below_popularity" if floor else "worse"
            reason = self._worse(sample, bound, f", and {floor}" if floor else "")
            return Verdict(decision="refused", slug=slug, reason=reason, metrics=metrics, pooled=kept)
        change = f"The candidate scores {_mean(sample):+.2%} against the champion"
        reason = f"{change} over {_events(sample):.0f} held-out events{f', though {floor}' if floor else ''}."
        return _passed("passed", reason, metrics, newest, kept, hold)

    def _pool(self, own: Pooled, kept: Sequence[Pooled]) -> Pooled:
        """This window and the newest of the kept ones, as few as reach `min_events`."""
        sample = own
        for past in kept[: self.windows - 1]:
            if _events(sample) >= self.min_events:
                break
            sample = {key: torch.cat((sample[key], past[key])) for key in sample}
        return sample

    def _better_baseline(self, window: Window) -> str:
        """Words for the baseline that beats the candidate at `confidence`, or nothing."""
        for name, score in (("popularity", window.popularity), ("decayed popularity", window.decayed_popularity)):
            if len(score) and np.isfinite(score).all():
                behind = _relative_differences(window.candidate, score, window.users)
                if _upper(behind, self.confidence) < 0:
                    return f"is {-_mean(behind):.2%} below {name}"
        return ""

    def _worse(self, sample: Pooled, bound: float, more: str = "", *, what: str = "The candidate") -> str:
        return (
            f"{what} scores {_mean(sample):+.2%} against the champion over {_events(sample):.0f} held-out "
            f"events (at best {bound:+.2%}; the tolerance is {-self.tolerance:.2%}){more}."
        )


def compare(
    scores: Floats,
    reference: Floats,
    users: NDArray[np.int64],
    pooled: Sequence[Pooled],
    *,
    windows: int,
    confidence: float,
) -> tuple[dict[str, float], list[Pooled]]:
    """How `scores` do against a `reference` on the same events, over the last `windows` windows; decides nothing.

    Returns `events`, how many that are, `change`, the mean difference relative to the reference, and its one-sided
    bounds `low` and `high`, each at `confidence`, as far as they can be computed; and the windows to keep, newest
    first.
    """
    if not (len(scores) and np.isfinite(scores).all() and np.isfinite(reference).all()):
        return {}, list(pooled)
    kept = [_relative_differences(scores, reference, users), *pooled][:windows]
    sample = {key: torch.cat([window[key] for window in kept]) for key in kept[0]}
    negative = {**sample, "sums": -sample["sums"]}
    figures = _finite(
        events=_events(sample),
        change=_mean(sample),
        low=-_upper(negative, confidence),
        high=_upper(sample, confidence),
    )
    return figures, kept


def _passed(
    slug: str, reason: str, metrics: dict[str, float], newest: list[Pooled], kept: list[Pooled], hold: bool
) -> Verdict:
    if not hold:
        return Verdict(decision="promoted", slug=slug, reason=reason, metrics=metrics, pooled=newest)
    # what is not served is no evidence about what is: the pool stays as it was
    held = f"Held until told otherwise; it would pass: {reason}"
    return Verdict(decision="held", slug="hold", reason=held, metrics=metrics, pooled=kept)


def _means(window: Window) -> dict[str, float]:
    scores = {
        "gate_candidate": window.candidate,
        "gate_champion": window.champion,
        "gate_popularity": window.popularity,
        "gate_decayed_popularity": window.decayed_popularity,
    }
    means = {name: float(x.mean()) for name, x in scores.items() if x is not None and len(x) and np.isfinite(x).all()}
    return {"gate_events": float(len(window.candidate)), **means}


def _finite(**figures: float) -> dict[str, float]:
    return {name: figure for name, figure in figures.items() if np.isfinite(figure)}


def _relative_differences(candidate: Floats, reference: Floats, users: NDArray[np.int64] | None) -> Pooled:
    """Differences over |mean of the reference|, added up by user: relative, so that unlike windows can be pooled."""
    scale = abs(float(reference.mean())) if len(reference) else 0.0
    relative = (candidate.astype(np.float64) - reference) / (scale or 1.0)
    if users is None:
        return {"sums": torch.from_numpy(relative), "counts": torch.ones(len(relative), dtype=torch.float64)}
    _, code = np.unique(users, return_inverse=True)
    return {
        "sums": torch.from_numpy(np.bincount(code, weights=relative).astype(np.float64)),
        "counts": torch.from_numpy(np.bincount(code).astype(np.float64)),
    }


def _clusters(sample: Pooled) -> int:
    return len(sample["counts"])


def _events(sample: Pooled) -> float:
    return float(sample["counts"].sum())


def _mean(sample: Pooled) -> float:
    return float(sample["sums"].sum()) / max(1.0, _events(sample))


def _upper(sample: Pooled, confidence: float) -> float:
    """One-sided upper bound of the mean: mean + t · se, with G − 1 degrees of freedom; infinite below `LEAST_CLUSTERS`.

    The standard error is that of a ratio of cluster totals, √( G/(G−1) Σ_g (s_g − n_g · mean)² ) / n (Cochran,
    "Sampling techniques", 1977, section 9A.2): with clusters of one event it is the ordinary t-test's.
    """
    g = _clusters(sample)
    if g < LEAST_CLUSTERS:
        return float("inf")
    residual_G = sample["sums"] - sample["counts"] * _mean(sample)
    error = float((residual_G.square().sum() * g / (g - 1)).sqrt()) / _events(sample)
    return _mean(sample) + _t_quantile(confidence, g - 1) * error


def _t_quantile(confidence: float, degrees: int) -> float:
    """Student's t by its expansion around the normal (Abramowitz & Stegun 26.7.5): exact to 1e-4 from 19 degrees on."""
    z = NormalDist().inv_cdf(confidence)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
