"""How the scorer learns from a phase: new examples in the order of time, each step with some stored ones replayed.

The learner owns the weights, their optimizer and its own random numbers. Its state after a phase is a function of its
state before and of the events: no clock, no global random state, nothing that outlives a call but `state_dict`.

Shape suffixes: B examples, N items, R rows of a step, L places of a history, D vector size, K popularity features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import catalogue
from models.auxiliary import TaskHeads
from models.averages import Averages
from models.beside import Beside, at_once, during
from models.calibration import Calibration
from models.content_steps import ContentSteps
from models.cooccurrence import Cooccurrence
from models.distillation import Distillation
from models.event_log import LogView
from models.examples import Examples
from models.factors import Factors
from models.finite import all_finite
from models.histories import ValueScale
from models.item_tables import RowTable
from models.memory import Memory
from models.objective import Objective
from models.objectives import AUXILIARY, OBJECTIVES
from models.popularity import COLUMNS, FEATURES, NEWNESS, NEWNESS_EVERY, Popularity
from models.sampling import favour_rare, replay_positions
from models.scorer import Scorer
from models.soundness import check_learner
from models.spec import ModelSpec, TrainSpec

Ints = NDArray[np.int64]

BLOCK = 1024
"""New events between two refreshes of contents, popularity and scales: a long phase learns as several short ones."""
ENCODER_RATE = 0.3
"""How much smaller the steps of the item encoders are: they have hundreds of inputs, and most say nothing."""
GROUP_RATES = (ENCODER_RATE, 1.0)
"""The same of each group of parameters."""
CONTEXT_RATE = 10.0
"""How much larger the first steps of what an item says in a history are than those of the shared weights."""
BIAS_RATE = 100.0
"""The same of its bias, which has the scores' own scale and not that of one of many coordinates."""
OVERDRAWN = 4
"""How many events are drawn for each that is replayed, where rare items are favoured."""
BIAS_PRIOR = 3.0
"""Where a bias is a mean of errors, of how many errors of 0 too: the variance of one over that of items' means."""


@dataclass(frozen=True)
class LearnReport:
    """What one call of `learn` did."""

    steps: int
    new: int
    replayed: int
    loss: float
    """Mean over steps; NaN without any."""
    finite: bool
    """Whether loss and weights are finite; if not, go back to the parent's state."""


class Learner:
    """The weights and how they learn."""

    def __init__(self, spec: ModelSpec, train: TrainSpec, memory: Memory, seed: int) -> None:
        self.spec, self.train, self.memory = spec, train, memory
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if train.device == "auto" else train.device
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scorer = Scorer(spec).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.optimizer = self._new_optimizer()
        self.residual = RowTable(spec.dim, self.device)
        self.context = RowTable(spec.dim, self.device)
        """What an item says of a user in whose history it is, beyond what it is itself."""
        self.bias = RowTable(1, self.device)
        self.tables = {"residual": self.residual, "context": self.context, "bias": self.bias}
        self.averages = Averages(self.scorer, self.tables)
        self.cooccurrence = Cooccurrence(spec.cooccurrence_dim, self.device)
        self.factors = Factors(spec.factors_dim, self.device)
        self.popularity = Popularity.empty()
        self.calibration = Calibration()
        self.values = ValueScale()
        self.steps = 0
        # rebuilt at the start of each block, so no part of the state
        self.contents = torch.zeros(0, spec.dim, device=self.device)
        self.features = torch.zeros(0, FEATURES, device=self.device)
        self.content_steps = ContentSteps(self)
        self.heads = TaskHeads(
            train.auxiliary, spec.dim, rate=train.learning_rate, decay=train.weight_decay, device=self.device
        )
        self.objective = OBJECTIVES[spec.objective](self)
        self.tasks = [(self.objective, 1.0)]
        """What is learned, each with its weight; the main objective first."""
        self._distillation = Distillation(self)
        if train.distil:
            self.tasks.append((self._distillation, train.distil))
        self.tasks += [(AUXILIARY[name](self, self.heads[name]), weight) for name, weight in train.auxiliary.items()]

    @property
    def _shared_rate(self) -> float:
        return self.train.learning_rate * OBJECTIVES[self.spec.objective].shared_rate

    def _new_optimizer(self) -> torch.optim.AdamW:
        rate, decay = self._shared_rate, self.train.weight_decay
        groups = [
            {"params": list(group), "lr": rate * factor}
            for group, factor in zip(self.scorer.parameter_groups(), GROUP_RATES, strict=True)
        ]
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)

    def _set_pace(self, examples: int) -> float:
        """By what factor a step of so many examples is longer: if they are more than `batch`, by the root of how many
        times that is, as suits Adam (Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms",
        2022)."""
        longer = math.sqrt(max(1.0, examples / self.train.batch))
        for group, factor in zip(self.optimizer.param_groups, GROUP_RATES, strict=True):
            group["lr"] = longer * self._shared_rate * factor
        return longer

    # -- learning

    def learn(self, positions: Ints, *, replay_ratio: float, beside: Beside = at_once) -> LearnReport:
        """Learn the events at these log positions (ascending), replaying `replay_ratio` earlier ones for each.

        Calibration, co-occurrence and factors are learned `beside` a block's steps, and take their places after them.
        """
        positions = np.asarray(positions, np.int64)
        log = self.memory.log.view(shared_tail=True)
        self._grow()
        if self.train.distil:
            self._distillation.begin()
        losses: list[float] = []
        replayed = 0
        fresh = max(1, round(self.objective.batch / (1 + replay_ratio)))
        with torch.enable_grad():
            for block in range(0, len(positions), BLOCK):
                block_positions = positions[block : block + BLOCK]
                self.advance(log, int(block_positions[0]))
                if not self.values.count:
                    self.values.expect(log.value[block_positions])
                self._refresh(float(log.time[block_positions[0]]), beside)
                with (
                    during(beside, self._counting(log, block_positions)) as counted,
                    during(beside, self._calibrating(log, block_positions)) as calibrated,
                ):
                    for at in range(0, len(block_positions), fresh):
                        new = block_positions[at : at + fresh]
                        old = self._replayed(log, round(len(new) * replay_ratio), before=int(block_positions[0]))
                        stop = min(int(block_positions[min(at + fresh, len(block_positions)) - 1]) + 1, len(log))
                        parts = [
                            (objective, weight, objective.examples(log, new, old)) for objective, weight in self.tasks
                        ]
                        if any(len(examples) for _, _, examples in parts):
                            losses.append(self._step(parts, self.steps + len(losses)))
                            replayed += len(parts[0][2]) - parts[0][2].fresh
                        self.advance(log, stop)
                self.calibration, (self.cooccurrence, self.factors) = calibrated(), counted()
        self.steps += len(losses)
        self.averages.settle()
        finite = all(map(math.isfinite, losses)) and self._finite()
        loss = float(np.mean(losses)) if losses else math.nan
        return LearnReport(len(losses), len(positions), replayed, loss, finite)

    def _counting(self, log: LogView, positions: Ints) -> Callable[[], tuple[Cooccurrence, Factors]]:
        """What makes of co-occurrence and factors what they are after these events; those of now stay as they are. It
        reads no weights, and has random numbers of its own."""
        seed = int(torch.randint(2**62, (1,), generator=self.generator, device=self.device))

        def counted() -> tuple[Cooccurrence, Factors]:
            generator = torch.Generator(self.device).manual_seed(seed)
            cooccurrence, factors = copy.copy(self.cooccurrence), copy.copy(self.factors)
            cooccurrence.take(log, positions, generator)
            factors.take(log, positions, cooccurrence.counts, generator)
            return cooccurrence, factors

        return counted

    def _calibrating(self, log: LogView, positions: Ints) -> Callable[[], Calibration]:
        """What makes the calibration after these events, by weights as they are now."""
        with self.averages.in_place():  # the scales are for what is served
            return self.objective.calibration_by(log, positions)

    def _replayed(self, log: LogView, count: int, *, before: int) -> Ints:
        """Stored events to learn again, their log positions."""
        train = self.train
        drawn = count if train.replay_rare == 0 else OVERDRAWN * count
        old = replay_positions(len(log), drawn, train.replay_half_life, self.generator, exclude_from=before)
        if train.replay_rare == 0:
            return old
        item = log.item[old]
        happened = np.where(item >= 0, self.popularity.counts[item, -1], np.inf)
        return favour_rare(old, happened, count, train.replay_rare, self.generator)

    def _step(self, parts: list[tuple[Objective, float, Examples]], number: int) -> float:
        """One step of all objectives with their weights; returns the weighted loss."""
        longer = self._set_pace(max(len(examples) for _, _, examples in parts))
        keep = self.averages.share(self.train.average ** (longer**2), number)
        self.optimizer.zero_grad(set_to_none=True)
        self.heads.zero_grad()
        self.content_steps.begin()
        decayed: set[str] = set()
        total = sum(
            weight * self._backward(objective, weight, examples, keep, longer, decayed)
            for objective, weight, examples in parts
        )
        self.optimizer.step()
        self.averages.take(keep)
        self.heads.step()
        return total

    def _backward(
        self, objective: Objective, weight: float, examples: Examples, keep: float, longer: float, decayed: set[str]
    ) -> float:
        """Gradients of the shared weights, and the rows' own steps; returns the loss. Rows decay and are averaged once
        a step, however many objectives move them: `decayed` are the tables whose are."""
        if not len(examples):
            return 0.0
        step = objective.forward(examples)
        (step.loss if weight == 1 else weight * step.loss).backward()  # type: ignore[no-untyped-call]
        bias_R1 = None if step.bias_R.grad is None else step.bias_R.grad.unsqueeze(1)
        if step.rows is not None and step.error_R is not None and step.count_R is not None:
            self.bias.take(step.rows, step.error_R, step.count_R, prior=BIAS_PRIOR)
            bias_R1 = None
        for name, gradient, factor in (
            ("residual", step.vectors_RD.grad, objective.residual_rate),
            ("context", step.context_RD.grad, CONTEXT_RATE),
            ("bias", bias_R1, BIAS_RATE),
        ):
            if gradient is not None:  # a batch may have no history
                first = name not in decayed
                decayed.add(name)
                self.tables[name].step(
                    step.rows, gradient, step.shown_R,
                    rate=factor * longer * self.train.learning_rate,
                    decay=self.train.weight_decay if first else 0.0,
                    keep=keep if first or keep == 0 else 1.0,
                )  # fmt: skip
        content_RD = step.content_gradient()
        if content_RD is not None and self.scorer.fusion is not None:
            self.content_steps.backward(step.rows, content_RD)
        return float(step.loss.detach())

    # -- what the examples are scored with

    def admitted(self) -> torch.Tensor:
        """Whether each item (N,) was touched, so that it has something of its own."""
        return torch.from_numpy(self.popularity.first >= 0).to(self.device)

    def _grow(self) -> None:
        items = len(self.memory.items)
        new = items - len(self.residual)
        self.popularity.grow(items)
        self.popularity.place(self.memory.log.view(shared_tail=True).position_at(self.memory.announced))
        catalogue.observe(self.scorer, self.memory.item_features, self.memory.user_features, self.device)
        if new > 0:
            for table in self.tables.values():
                spread = self.objective.spread if table is self.residual else 0.0
                table.grow(new, spread=spread, generator=self.generator)
            self.cooccurrence.grow(new)
            self.factors.grow(new)
        blank = [row for row, one in enumerate(self.memory.items.ids) if one is None]
        if blank:
            gone = torch.tensor(blank, device=self.device)
            for table in self.tables.values():
                table.blank(gone)
            self.cooccurrence.blank(gone)
            self.factors.blank(gone)

    def advance(self, log: LogView, stop: int, *, values: bool = True) -> None:
        """Count the events before `stop`, and refresh what they touched."""
        start = self.popularity.position
        if stop <= start:
            return
        if values:
            self.values.take(log.value[start:stop])
        touched = self.popularity.advance(log.item[start:stop], log.weight[start:stop] > 0)
        if len(self.features) == len(self.popularity):
            age_s = log.time[self.popularity.last[touched]] - self.memory.announced[touched]
            features = self.popularity.features(touched, age_s, as_of_touch=True)
            self.features[torch.from_numpy(touched).to(self.device)] = torch.from_numpy(features).to(self.device)
            if start // NEWNESS_EVERY < stop // NEWNESS_EVERY:
                newness = self.popularity.newness(np.arange(len(self.popularity)))
                self.features[:, NEWNESS] = torch.from_numpy(newness).to(self.device)

    def pass_over(self, stop: int, *, values: bool = True) -> None:
        """The events before `stop` happened, though nothing was learned from them: popularity counts them.

        With `values` False theirs are left out of the running mean: they may be what broke the candidate.
        """
        self._grow()
        self.advance(self.memory.log.view(shared_tail=True), stop, values=values)

    def _refresh(self, now: float, beside: Beside = at_once) -> None:
        rows = np.arange(len(self.popularity))
        features = self.popularity.features(rows, now - self.memory.announced)
        self.features = torch.from_numpy(features).to(self.device)
        self.contents = catalogue.encode(self.scorer, self.memory.item_features, rows, self.device, beside)
        if self.scorer.regression is not None:
            met = (self.contents + self.residual.values)[self.popularity.first >= 0]
            self.scorer.regression.observe(met, self.cooccurrence.values)

    def _finite(self) -> bool:
        tables = (table.values for table in self.tables.values())
        tensors = [*self.scorer.parameters(), *tables, self.cooccurrence.values]
        return self.factors.finite and all(map(all_finite, tensors))

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """A deep copy of all that learning depends on: tensors on the CPU and plain containers."""
        return {
            **self.weights(),
            "learning": self.averages.weights(),
            "optimizer": _copied(self.optimizer.state_dict()),
            "generator": self.generator.get_state().clone(),
            "steps": self.steps,
            "auxiliary": self.heads.state(),
        }

    def weights(self) -> dict[str, Any]:
        """The part of `state_dict` that `Snapshot.build` reads."""
        popularity = self.popularity
        return {
            "scorer": self.averages.state(),
            **{name: table.state() for name, table in self.tables.items()},
            "cooccurrence": self.cooccurrence.state(),
            "factors": self.factors.state(),
            "popularity": {
                **{name: torch.from_numpy(getattr(popularity, name).copy()) for name in COLUMNS},
                "position": popularity.position,
            },
            "calibration": self.calibration.state(),
            "values": asdict(self.values),
        }

    def check(self, state: dict[str, Any]) -> None:
        """Whether `state` can be one of a learner of this model and memory. Raises `ValueError`, and `KeyError`,
        `TypeError` or `AttributeError` where it is no state at all."""
        check_learner(
            state,
            scorer=self.scorer.state_dict(),
            parameters=dict(self.scorer.named_parameters()),
            optimizer=self.optimizer.state_dict(),
            dim=self.spec.dim,
            cooccurrence_dim=self.spec.cooccurrence_dim,
            factors_dim=self.spec.factors_dim,
            items=len(self.memory.items),
            events=self.memory.n_events,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken. Raises `RuntimeError` where its shapes are another model's."""
        self.averages.load(state["scorer"], state["learning"])
        self.optimizer = self._new_optimizer()
        settings = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        # moments are of the state, settings of the configuration
        for group, (rate, decay) in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(lr=rate, weight_decay=decay)
        for name, table in self.tables.items():
            table.load(state[name])
        self.cooccurrence.load(state["cooccurrence"])
        self.factors.load(state["factors"])
        self.popularity = popularity_from(state)
        self.calibration = Calibration.from_state(state["calibration"])
        self.values = ValueScale(**state["values"])
        self.generator.set_state(state["generator"].clone())
        self.steps = state["steps"]
        self.heads.load(state.get("auxiliary", {}))
        self.features = torch.zeros(0, FEATURES, device=self.device)


def _copied(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state that goes on by itself."""
    moments = {place: {name: one.clone() for name, one in own.items()} for place, own in optimizer["state"].items()}
    return {"state": moments, "param_groups": copy.deepcopy(optimizer["param_groups"])}


def popularity_from(state: dict[str, Any]) -> Popularity:
    """The counts in a learner's state, as a copy."""
    stored = state["popularity"]
    columns = {name: stored[name].numpy().copy() for name in COLUMNS}
    return Popularity(**columns, position=stored["position"])
