"""What each item has of its own: a residual vector and a bias, learned row by row.

Shape suffixes: N items, R rows of a step, D vector size.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = (0.9, 0.99)
EPSILON = 1e-8


class RowTable:
    """Rows (N, D) with a row-wise Adam: one second moment a row, and only the rows of a step move.

    Kingma & Ba, "Adam", ICLR 2015, with the second moment averaged over each row as in the row-wise Adagrad of Naumov
    et al., "Deep learning recommendation model", 2019; rows that a step does not read keep their moments.
    """

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self.values = torch.zeros(0, dim, device=device)
        self.momentum = torch.zeros(0, dim, device=device)
        self.power = torch.zeros(0, device=device)
        self.steps = torch.zeros(0, device=device)

    def __len__(self) -> int:
        return len(self.values)

    def grow(self, rows: Tensor) -> None:
        """Append rows with these initial values."""
        new = len(rows)
        if new:
            self.values = torch.cat((self.values, rows))
            self.momentum = torch.cat((self.momentum, torch.zeros_like(rows)))
            self.power = torch.cat((self.power, rows.new_zeros(new)))
            self.steps = torch.cat((self.steps, rows.new_zeros(new)))

    @torch.no_grad()
    def step(self, rows_R: Tensor | None, gradient_RD: Tensor, active_R: Tensor, *, rate: float, decay: float) -> None:
        """One Adam step of rows `rows_R` (None: all), of those that are `active`; decay is decoupled, per step."""
        beta1, beta2 = BETAS
        index = rows_R if rows_R is not None else slice(None)
        active_R1 = active_R.unsqueeze(1)
        gradient_RD = gradient_RD * active_R1
        steps = self.steps[index] + active_R
        momentum = torch.where(active_R1, torch.lerp(gradient_RD, self.momentum[index], beta1), self.momentum[index])
        square_R = gradient_RD.square().mean(1)
        power = torch.where(active_R, torch.lerp(square_R, self.power[index], beta2), self.power[index])
        self.steps[index], self.momentum[index], self.power[index] = steps, momentum, power
        first = 1 - beta1 ** steps.clamp(min=1)
        second = 1 - beta2 ** steps.clamp(min=1)
        size = rate / (((power / second).sqrt() + EPSILON) * first)
        values = self.values[index]
        self.values[index] = values - active_R1 * (size.unsqueeze(1) * momentum + rate * decay * values)

    def blank(self, rows: Tensor) -> None:
        """Forget rows."""
        for table in (self.values, self.momentum, self.power, self.steps):
            table[rows] = 0

    def state(self) -> dict[str, Tensor]:
        """A copy of everything, on the CPU."""
        return {name: getattr(self, name).detach().cpu().clone() for name in ("values", "momentum", "power", "steps")}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a copied state."""
        for name, value in state.items():
            setattr(self, name, value.to(self.values.device).clone())
