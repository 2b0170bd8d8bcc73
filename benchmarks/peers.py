"""Other libraries as entrants of `benchmarks.prequential`; each is imported by whoever asks for it, or is missing.

River learns each event; LightFM learns each phase, all of it five times; implicit refits on *all* of the past every few
phases: that is its price. Each is given what its own documentation recommends for a stream, at 64 dimensions where it
has no smaller default.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.baselines import REFIT, Floats, Popularity
from benchmarks.prequential import Past


class RiverBiasedMf(Popularity):
    """River's biased matrix factorisation, one event at a time, as in its documentation (Funk 2006).

    r̂_ui = r̄ + b_u + b_i + ⟨v_u, v_i⟩.
    """

    def __init__(self, past: Past) -> None:
        from river import optim, reco

        super().__init__(past)
        self._model: Any = reco.BiasedMF(
            n_factors=10,
            bias_optimizer=optim.SGD(0.025),
            latent_optimizer=optim.SGD(0.05),
            weight_initializer=optim.initializers.Zeros(),
            latent_initializer=optim.initializers.Normal(mu=0, sigma=0.1, seed=71),
            l2_bias=0.0,
            l2_latent=0.0,
        )
        # its vectors as arrays, so that a user can be scored against all items at once
        self._latent = np.zeros((past.ni, 10))
        self._bias = np.zeros(past.ni)

    def event(self, j: int) -> None:
        """Learn the value; one without a value counts as 1."""
        user, item, value = int(self.past.u[j]), int(self.past.i[j]), float(self.past.v[j])
        self._model.learn_one(user=user, item=item, y=value if np.isfinite(value) else 1.0)
        self._latent[item], self._bias[item] = self._model.i_latents[item], self._model.i_biases[item]

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """What the user would give each item, less what is the same for all."""
        return np.asarray(self._latent @ self._model.u_latents[u] + self._bias if history else self._bias)

    def rate(self, u: int, i: int, history: list[int], t: float) -> float:  # noqa: ARG002
        """The value expected."""
        return float(self._model.predict_one(user=u, item=i))


class LightFm(Popularity):
    """LightFM with the WARP loss (Kula 2015; Weston, Bengio & Usunier 2011) by `fit_partial` on each phase."""

    def __init__(self, past: Past) -> None:
        from lightfm import LightFM

        super().__init__(past)
        self._model: Any = LightFM(no_components=64, loss="warp", learning_rate=0.05, random_state=0)

    def train(self, a: int, b: int) -> None:
        """Five passes over the phase."""
        import scipy.sparse

        past = self.past
        kept = np.arange(a, b)[past.positive[a:b]]
        clicks = scipy.sparse.coo_matrix(
            (np.ones(len(kept), np.float32), (past.u[kept], past.i[kept])), shape=(past.nu, past.ni)
        )
        self._model.fit_partial(clicks, epochs=5, num_threads=1)
        self._users = self._model.get_user_representations()[1]
        self._item_bias, self._items = self._model.get_item_representations()

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """Dot products and the items' biases."""
        return np.asarray(self._items @ self._users[u] + self._item_bias)


class ImplicitAls(Popularity):
    """implicit's alternating least squares (Hu, Koren & Volinsky 2008), the user folded in from the newest history."""

    def __init__(self, past: Past) -> None:
        import implicit.als

        super().__init__(past)
        self._library: Any = implicit.als
        self._phases = 0

    def train(self, a: int, b: int) -> None:  # noqa: ARG002
        """Everything again, if it is time to."""
        import scipy.sparse

        self._phases += 1
        if self._phases == 1 or self._phases % REFIT == 0:
            past = self.past
            kept = np.flatnonzero(past.positive[: past.n])
            ones = np.ones(len(kept), np.float32)
            all_of_it = scipy.sparse.csr_matrix((ones, (past.u[kept], past.i[kept])), shape=(past.nu, past.ni))
            self._model = self._library.AlternatingLeastSquares(
                factors=64, regularization=0.05, alpha=10.0, iterations=10, num_threads=1, random_state=0
            )
            self._model.fit(all_of_it, show_progress=False)

    def row(self, u: int, history: list[int], t: float) -> Floats:  # noqa: ARG002
        """Dot products of the folded-in user, and popularity among equals."""
        import scipy.sparse

        if not history:
            return self.prior()
        items = self.past.i[history]
        where = (np.zeros(len(items), np.int64), items)
        own = scipy.sparse.csr_matrix((np.ones(len(items), np.float32), where), shape=(1, self.past.ni))
        user = self._model.recalculate_user(0, own).ravel()
        return np.asarray(self._model.item_factors @ user + self.prior())
