"""The textbook scorer: features in, a rating out. Start reading here.

Each feature vector of a user and an item is encoded to one size; an item's modalities are fused; a small network reads
the pair. `models/scorer.py` is the same idea grown up: histories, popularity, missing modalities, a plain dot product.

Shape suffixes: B pairs, M modalities, D vector size, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.encoders import VectorEncoder
from models.fusion import FUSIONS


class TextbookScorer(nn.Module):
    """rating = MLP([user; fusion(modalities)]).

    He et al., "Neural collaborative filtering", WWW 2017, section 3.3, reading features in place of ids. `modalities`
    gives the length of each item modality's vectors by name.
    """

    def __init__(self, user_dim: int, modalities: Mapping[str, int], *, dim: int, fusion: str = "sum") -> None:
        super().__init__()
        self.user = VectorEncoder(user_dim, dim)
        self.item = nn.ModuleDict({name: VectorEncoder(length, dim) for name, length in modalities.items()})
        self.fusion = FUSIONS[fusion](dim, len(modalities))
        self.head = nn.Sequential(nn.Linear(2 * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 1))

    def forward(self, user_BF: Tensor, item: Mapping[str, Tensor]) -> Tensor:
        """Ratings (B,) of B pairs: user features (B, F), and item features (B, F) by modality."""
        user_BD = self.user(user_BF)
        x_BMD = torch.stack([encoder(item[name]) for name, encoder in self.item.items()], dim=1)
        item_BD = self.fusion(x_BMD, torch.ones(x_BMD.shape[:2], dtype=torch.bool))
        return self.head(torch.cat((user_BD, item_BD), dim=1)).squeeze(1)  # type: ignore[no-any-return]
