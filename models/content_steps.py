# ruff: noqa: N815 (shape suffixes)
"""How the encoders learn: the gradient of item vectors goes on into them, for the items that matter most.

Shape suffixes: R rows of a step, C rows that are encoded in it, M modalities, D vector size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models import catalogue
from models.alignment import alignment
from models.dropout import Noise, hide_modalities

if TYPE_CHECKING:
    from models.learner import Learner


class Encoded(NamedTuple):
    """Rows encoded with a graph behind them."""

    chosen_C: Tensor
    """Places among the rows of the step."""
    weight_C: Tensor
    """How many rows each stands for."""
    x_CMD: Tensor
    mask_CM: Tensor
    content_CD: Tensor


class ContentSteps:
    """Encodes rows with gradients: after the scores, or before them where the encoders are disturbed."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        train = learner.train
        disturbed = train.encoder_dropout > 0 or train.modality_dropout > 0
        self.noise = Noise(train.encoder_dropout, train.modality_dropout, learner.generator) if disturbed else None
        self._encoded: Encoded | None = None
        self._aligned = False

    def begin(self) -> None:
        """A step begins: however many objectives send gradients in it, modalities are aligned once."""
        self._aligned = False

    def disturbed(self, rows: Tensor | None, contents_RD: Tensor, target_B: Tensor) -> Tensor:
        """Contents (R, D) of which some were encoded under dropout; as they are, where nothing is dropped.

        These are the targets `target_B` (places among the rows), the rows that had the largest gradients so far, and a
        sample of the others.
        """
        learner = self.learner
        if self.noise is None or learner.scorer.fusion is None:
            return contents_RD
        size_R = learner.residual.power[slice(None) if rows is None else rows].sqrt()
        # what nobody has touched has none of its own yet, but is pushed away like any other
        there_R = size_R > 0
        size_R[~there_R] = size_R[there_R].median() if there_R.any() else 1.0
        size_R[target_B] = torch.inf
        chosen, weights = catalogue.chosen_rows(size_R.unsqueeze(1), learner.train.content_rows, learner.generator)
        self._encoded = self._encode(rows, chosen, weights)
        return contents_RD.index_put((chosen,), self._encoded.content_CD.detach())

    def backward(self, rows: Tensor | None, gradient_RD: Tensor) -> None:
        """Send the gradient of a step's item vectors, and that of the alignment, into the encoders."""
        learner = self.learner
        # dropped units get the gradient of the scores that they were dropped in
        encoded, self._encoded = self._encoded, None
        if encoded is None:
            chosen, weights = catalogue.chosen_rows(gradient_RD, learner.train.content_rows, learner.generator)
            encoded = self._encode(rows, chosen, weights)
            # the table keeps the newer contents
            learner.contents[chosen if rows is None else rows[chosen]] = encoded.content_CD.detach()
        gradient_CD = gradient_RD[encoded.chosen_C] * encoded.weight_C.unsqueeze(1)
        loss = (encoded.content_CD * gradient_CD).sum()
        if learner.train.align and not self._aligned:
            self._aligned = True
            loss = loss + alignment(encoded.x_CMD, encoded.mask_CM, learner.train.align)
        loss.backward()  # type: ignore[no-untyped-call]

    def _encode(self, rows: Tensor | None, chosen: Tensor, weights: Tensor) -> Encoded:
        learner, noise = self.learner, self.noise
        numbers = (chosen if rows is None else rows[chosen]).cpu().numpy()
        features = catalogue.gather(learner.memory.item_features, numbers, learner.device)
        x_CMD, mask_CM = learner.scorer.encoded(features, noise)
        seen_CM = mask_CM
        if noise is not None and noise.modalities > 0:
            seen_CM = hide_modalities(mask_CM, noise.modalities, noise.generator)
        return Encoded(chosen, weights, x_CMD, mask_CM, learner.scorer.fused(x_CMD, seen_CM))
