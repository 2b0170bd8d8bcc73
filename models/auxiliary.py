"""Auxiliary objectives: what else the same vectors have to tell, each through a head of its own that is not served.

Shape suffixes: B examples, D vector size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TaskHead(nn.Module):
    """s = Σ_d w_d u_d e_d + b: the personal parts alone, in the task's own scale.

    The shared-bottom model of Caruana, "Multitask learning", Machine Learning 1997. Bias and popularity stay out of it:
    they belong to the main objective.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), dim**-0.5))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, user_BD: Tensor, item_BD: Tensor) -> Tensor:
        """Scores (B,) of users with an item each."""
        return (user_BD * item_BD) @ self.weight + self.bias


class TaskHeads:
    """The heads of all auxiliary objectives and their optimizer, a part of the learner's state of its own."""

    def __init__(
        self, names: Iterable[str], dim: int, *, rate: float, decay: float, device: torch.device | str
    ) -> None:
        self.heads = nn.ModuleDict({name: TaskHead(dim) for name in names}).to(device)
        self._settings = {"lr": rate, "weight_decay": decay}
        self._optimizers = {name: self._optimizer(name) for name in self.heads}

    def _optimizer(self, name: str) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.heads[name].parameters(), **self._settings)  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> nn.Module:
        return self.heads[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.heads)

    def zero_grad(self) -> None:
        """Before a step."""
        self.heads.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Spend the gradients of a step."""
        for optimizer in self._optimizers.values():
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """A copy of everything, on the CPU, by name."""
        return {
            name: {
                "head": {key: value.detach().cpu().clone() for key, value in self.heads[name].state_dict().items()},
                "optimizer": copy.deepcopy(self._optimizers[name].state_dict()),
            }
            for name in self.heads
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a copied state; heads that it does not know start anew, and those that are gone are left out."""
        for name in self.heads:
            self._optimizers[name] = self._optimizer(name)
            if name in state:
                self.heads[name].load_state_dict(state[name]["head"])
                self._optimizers[name].load_state_dict(copy.deepcopy(state[name]["optimizer"]))
                for group in self._optimizers[name].param_groups:  # moments are of the state, settings of today
                    group.update(self._settings)
