"""One encoder per modality: normalise what comes in, then a small network to the model's vector size.

Shape suffixes: B items, F frames, I input size, D vector size, N rows of any number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.dropout import Noise, drop
from models.fusion_base import masked_softmax


class InputNorm(nn.Module):
    """(x − mean) / std per input, from the first `warmup_rows` rows ever observed and fixed from then on.

    Fixed, because a moving normalisation would change the vectors of items that nobody touched, and would make a
    resumed run depend on where it was cut. The moments are merged batch by batch in float64 (Chan, Golub & LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so the same rows give the same
    buffers. Values are clipped to ±`clip` standard deviations, lest one broken feature drown the rest.
    """

    seen: Tensor
    mean: Tensor
    m2: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, dim_in: int, *, warmup_rows: int = 10_000, clip: float = 10.0) -> None:
        super().__init__()
        self.warmup_rows = warmup_rows
        self.clip = clip
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim_in, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(dim_in, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(dim_in))
        self.register_buffer("scale", torch.ones(dim_in))

    @property
    def warm(self) -> bool:
        """Whether enough rows were seen: `observe` changes nothing any more."""
        return int(self.seen) >= self.warmup_rows

    @torch.no_grad()
    def observe(self, x_NI: Tensor) -> None:
        """Take rows (N, I) into the moments, in their order, until `warmup_rows` were taken; the rest is ignored."""
        seen = int(self.seen)
        x_NI = x_NI[: max(0, self.warmup_rows - seen)].to(self.mean)
        rows = len(x_NI)
        if rows == 0:
            return
        mean_I = x_NI.mean(dim=0)
        delta_I = mean_I - self.mean
        total = seen + rows
        self.m2 += ((x_NI - mean_I) ** 2).sum(dim=0) + delta_I**2 * (seen * rows / total)
        self.mean += delta_I * (rows / total)
        self.seen.fill_(total)
        std_I = (self.m2 / total).sqrt()
        # an input that never varied says nothing: only centre it
        flat_I = std_I <= 1e-6 * self.mean.abs().clamp(min=1e-6)
        self.shift.copy_(self.mean)
        self.scale.copy_(torch.where(flat_I, torch.ones_like(std_I), 1 / std_I))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (…, I); the identity (but for the clip) before anything was observed."""
        return (x - self.shift).mul_(self.scale).clamp_(-self.clip, self.clip)


class VectorEncoder(nn.Module):
    """y = W₂ GELU(W₁ norm(x) + b₁) + b₂ (GELU: Hendrycks & Gimpel, 2016), for a modality of one vector an item.

    `hidden` is the width of the layer between; `None` takes twice `dim`.
    """

    def __init__(self, dim_in: int, dim: int, *, hidden: int | None = None, warmup_rows: int = 10_000) -> None:
        super().__init__()
        width = 2 * dim if hidden is None else hidden
        self.norm = InputNorm(dim_in, warmup_rows=warmup_rows)
        self.mlp = nn.Sequential(nn.Linear(dim_in, width), nn.GELU(), nn.Linear(width, dim))

    def observe(self, x_NI: Tensor) -> None:
        """Let the normalisation see rows (N, I); nothing happens once it is warm."""
        self.norm.observe(x_NI)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Encode (…, I) into (…, D)."""
        inner, activation, outer = self.mlp
        h = activation(inner(self.norm(x)))
        if noise is not None:
            h = drop(h, noise.inner, noise.generator)
        return outer(h)  # type: ignore[no-any-return]


class FrameEncoder(nn.Module):
    """A vector encoder for each frame, then temporal attention pooling.

    y = Σ_f a_f h_f, a = softmax_f(wᵀ tanh(V (h_f + p_f))): attention pooling of Ilse, Tomczak & Welling,
    "Attention-based deep multiple instance learning", ICML 2018, eq. 8, with the sinusoidal positions p_f of Vaswani
    et al., 2017, in the weights only, so that *when* a frame comes can count and any number of frames is taken.
    """

    def __init__(self, dim_in: int, dim: int, *, hidden: int | None = None, warmup_rows: int = 10_000) -> None:
        super().__init__()
        self.frame = VectorEncoder(dim_in, dim, hidden=hidden, warmup_rows=warmup_rows)
        self.key = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, 1, bias=False)

    @property
    def norm(self) -> InputNorm:
        """What each frame is normalised by."""
        return self.frame.norm

    def observe(self, x_BFI: Tensor, mask_BF: Tensor) -> None:
        """Let the normalisation see the frames that are there; nothing happens once it is warm."""
        self.frame.observe(x_BFI[mask_BF])

    def forward(self, x_BFI: Tensor, mask_BF: Tensor, noise: Noise | None = None) -> Tensor:
        """Encode (B, F, I) under a boolean mask (B, F) into (B, D); zeros where an item has no frame."""
        present_BFI = torch.where(mask_BF.unsqueeze(-1), x_BFI, torch.zeros_like(x_BFI))
        h_BFD = self.frame(present_BFI, noise)
        keys_BFD = torch.tanh(self.key(h_BFD + positions(h_BFD.shape[1], h_BFD.shape[2]).to(h_BFD)))
        weights_BF = masked_softmax(self.query(keys_BFD).squeeze(-1), mask_BF)
        return torch.einsum("bf,bfd->bd", weights_BF, h_BFD)


def positions(frames: int, dim: int) -> Tensor:
    """(F, D): sin and cos of f / 10000^(2i/D) (Vaswani et al., "Attention is all you need", 2017, section 3.5)."""
    frame_F1 = torch.arange(frames, dtype=torch.float32).unsqueeze(1)
    rate_H = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    angle_FH = frame_F1 * rate_H
    return torch.stack((angle_FH.sin(), angle_FH.cos()), dim=-1).flatten(1)[:, :dim]
