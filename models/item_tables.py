"""What each item has of its own: a residual vector, a context vector and a bias, learned row by row.

Shape suffixes: N items, R rows of a step, D vector size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RowTable:
    """Rows (N, D) with a row-wise Adagrad: a row's step shrinks with all the gradients that it ever had.

    Duchi, Hazan & Singer, "Adaptive subgradient methods", JMLR 2011, with one accumulator a row as in Naumov et al.,
    "Deep learning recommendation model", 2019. Not Adam: under a softmax over the whole catalogue a rare item is pushed
    down a little in every step, and a second moment that forgets would blow these pushes up to full steps.
    """

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self.values = torch.zeros(0, dim, device=device)
        self.power = torch.zeros(0, device=device)
        """Sum of each row's mean squared gradients; of a row that is a mean of errors, how many these are."""
        self.average = torch.zeros(0, dim, device=device)
        """An exponential average of the values over steps: what is served. Of each row as of its last step; see
        `settle`."""
        self._kept = torch.zeros(0, dtype=torch.float64, device=device)
        self._log_kept = 0.0

    def __len__(self) -> int:
        return len(self.values)

    def grow(self, rows: int, *, spread: float = 0.0, generator: torch.Generator | None = None) -> None:
        """Append so many rows: zeros, or normal random numbers of standard deviation `spread`."""
        if rows:
            added = self.values.new_zeros(rows, self.values.shape[1])
            if spread > 0:
                added.normal_(0, spread, generator=generator)
            self.values = torch.cat((self.values, added))
            self.power = torch.cat((self.power, added.new_zeros(rows)))
            self.average = torch.cat((self.average, added))
            self._kept = torch.cat((self._kept, self._kept.new_full((rows,), self._log_kept)))

    @torch.no_grad()
    def step(
        self,
        rows_R: Tensor | None,
        gradient_RD: Tensor,
        active_R: Tensor,
        *,
        rate: float,
        decay: float,
        keep: float = 0.0,
    ) -> None:
        """x ← x − rate · (g / √power + decay · x) for the active ones of rows `rows_R` (None: all).

        Then average ← keep · average + (1 − keep) · x, of all rows; those that are not in the step catch up when they
        are, or are settled.
        """
        whole = rows_R is None
        index = slice(None) if rows_R is None else rows_R
        # of the whole table these are views, changed in place: at ten thousand rows a step is what memory can move
        power_R, values_RD, average_RD = self.power[index], self.values[index], self.average[index]
        power_R += torch.linalg.vecdot(gradient_RD, gradient_RD) * (active_R / gradient_RD.shape[1])
        missed_R = self._log_kept - self._kept[index]
        if keep > 0 and missed_R.any():
            average_RD.lerp_(values_RD, (1 - missed_R.exp()).float().unsqueeze(1))
        # a row that never had a gradient has none now
        step_R1 = (rate * active_R * power_R.clamp(min=1e-24).rsqrt()).unsqueeze(1)
        values_RD.mul_((1 - rate * decay * active_R).unsqueeze(1)).addcmul_(gradient_RD, step_R1, value=-1)
        average_RD.lerp_(values_RD, 1 - keep)
        if not whole:
            self.power[index], self.values[index], self.average[index] = power_R, values_RD, average_RD
        if keep > 0:
            self._log_kept += math.log(keep)
            self._kept[index] = self._log_kept

    @torch.no_grad()
    def take(self, rows_R: Tensor, error_R: Tensor, count_R: Tensor, *, prior: float) -> None:
        """x ← x + Σ errors / (prior + n): rows (R, 1) as the means of all n errors that they ever had, shrunken.

        Each error is one from x as it was. x is the posterior mean of what is behind them, where its variance is that
        of an error over `prior`; so it is an average already, and is served as it is.
        """
        power_R = self.power[rows_R] + count_R
        self.power[rows_R] = power_R
        self.values[rows_R] += (error_R / (prior + power_R)).unsqueeze(1)
        self.average[rows_R] = self.values[rows_R]

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the average of every row up to the last step."""
        missed_N1 = (self._log_kept - self._kept).exp().float().unsqueeze(1)
        self.average = torch.lerp(self.values, self.average, missed_N1)
        self._kept.zero_()
        self._log_kept = 0.0

    def swap(self) -> None:
        """Exchange values and average."""
        self.values, self.average = self.average, self.values

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        self.values[rows] = 0
        self.power[rows] = 0
        self.average[rows] = 0

    def state(self) -> dict[str, Tensor]:
        """A copy of everything, on the CPU; `values` are the average, as of the last `settle`."""
        stored = {"values": self.average, "learning": self.values, "power": self.power}
        return {name: value.detach().cpu().clone() for name, value in stored.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a copied state."""
        self.average, self.values, self.power = (
            state[name].to(self.values.device).clone() for name in ("values", "learning", "power")
        )
        self._kept = torch.zeros(len(self.values), dtype=torch.float64, device=self.values.device)
        self._log_kept = 0.0
