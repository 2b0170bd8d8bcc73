"""What is hidden at random while learning.

All of it draws from the learner's generator, so that a resumed run draws the same; `nn.Dropout` draws from torch's own.

Shape suffixes: B items, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """How encoders and fusion are disturbed in a training step."""

    inner: float
    """Share of the encoders' inner units that are dropped."""
    modalities: float
    """Share of the modalities that are hidden."""
    generator: torch.Generator


def drop(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout (Srivastava et al., 2014) that draws from `generator`; nothing where there is none."""
    if share <= 0 or generator is None:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept / (1 - share)


def hide_modalities(mask_BM: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The mask (B, M) with a `share` of what is there hidden, but never all that an item has.

    Modality dropout of Neverova et al., "ModDrop: adaptive multi-modal gesture recognition", TPAMI 2016, with one
    modality of each item, drawn uniformly, out of its reach.
    """
    draw_BM = torch.rand(mask_BM.shape, generator=generator, device=mask_BM.device)
    last_B1 = draw_BM.masked_fill(~mask_BM, -1.0).argmax(dim=1, keepdim=True)
    kept_BM = (draw_BM >= share).scatter(1, last_B1, True)
    return mask_BM & kept_BM
