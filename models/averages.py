"""An exponential average of the weights over the last steps: what is served, while learning goes on from the last step.

Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992, with a horizon, for the streams drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.item_tables import RowTable

WARM_UP = 10
"""The average is over all steps until there are about this many times the steps that it forgets in."""


class Averages:
    """The averages of shared weights, and those that the tables of rows keep themselves."""

    def __init__(self, module: nn.Module, tables: Mapping[str, RowTable]) -> None:
        self._module, self._tables = module, tables
        self._averages = {name: value.detach().clone() for name, value in module.named_parameters()}

    @staticmethod
    def share(most: float, steps: int) -> float:
        """How much of an average stays in the step after `steps` others: less than `most` at first."""
        return min(most, steps / (steps + WARM_UP))

    @torch.no_grad()
    def take(self, keep: float) -> None:
        """average ← keep · average + (1 − keep) · weight, of the shared weights."""
        weights = [value.detach() for value in self._module.parameters()]
        torch._foreach_lerp_(list(self._averages.values()), weights, 1 - keep)

    def settle(self) -> None:
        """Bring the rows' averages up to the last step."""
        for table in self._tables.values():
            table.settle()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the place of the weights, within the context."""
        self.settle()
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self._module.named_parameters():
            value.data, self._averages[name] = self._averages[name], value.data
        for table in self._tables.values():
            table.swap()

    def state(self) -> dict[str, Tensor]:
        """The module's `state_dict` with the averages in it, copied to the CPU."""
        stored = {**self._module.state_dict(), **self._averages}
        return {name: value.detach().cpu().clone() for name, value in stored.items()}

    def weights(self) -> dict[str, Tensor]:
        """The shared weights as of the last step, copied to the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self._module.named_parameters()}

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Take over what `state` and `weights` copied."""
        self._module.load_state_dict(dict(averages))
        for name, value in self._module.named_parameters():
            self._averages[name] = averages[name].to(value.device).clone()
            value.copy_(weights[name])
