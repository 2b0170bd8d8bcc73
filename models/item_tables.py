"""What each item has of its own: a residual vector and a bias, learned row by row.

Shape suffixes: N items, R rows of a step, D vector size.
"""

from __future__ import annotations

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
        """Sum of each row's mean squared gradients."""

    def __len__(self) -> int:
        return len(self.values)

    def grow(self, rows: Tensor) -> None:
        """Append rows with these initial values."""
        if len(rows):
            self.values = torch.cat((self.values, rows))
            self.power = torch.cat((self.power, rows.new_zeros(len(rows))))

    @torch.no_grad()
    def step(self, rows_R: Tensor | None, gradient_RD: Tensor, active_R: Tensor, *, rate: float, decay: float) -> None:
        """x ← x − rate · (g / √power + decay · x) for the active ones of rows `rows_R` (None: all)."""
        index = rows_R if rows_R is not None else slice(None)
        power_R = self.power[index] + gradient_RD.square().mean(1) * active_R
        self.power[index] = power_R
        values_RD = self.values[index]
        # a row that never had a gradient has none now
        change_RD = gradient_RD * power_R.clamp(min=1e-24).rsqrt().unsqueeze(1) + decay * values_RD
        self.values[index] = values_RD - rate * active_R.unsqueeze(1) * change_RD

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        self.values[rows] = 0
        self.power[rows] = 0

    def state(self) -> dict[str, Tensor]:
        """A copy of everything, on the CPU."""
        return {"values": self.values.detach().cpu().clone(), "power": self.power.detach().cpu().clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a copied state."""
        self.values = state["values"].to(self.values.device).clone()
        self.power = state["power"].to(self.power.device).clone()
