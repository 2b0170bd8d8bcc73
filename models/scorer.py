"""The scorer: how an item and a user become the two vectors whose dot product is the score.

    score(u, i) = ⟨s_len · u + Σ_k s_taste,k · τ_uk, e_i⟩ + s_bias · b_i + s_pop · (⟨q_u, P_i⟩ + a_i)
                + Σ_p s_like,p · ⟨r_up, r_i⟩ + Σ_p s_vint,p · ⟨h_up, h_i⟩
                + ⟨s_co · w_u + Σ_k s_fold,k · θ_uk, w_i⟩
                + ⟨s_fac · η_u + Σ_k s_turn,k · δ_uk, v_i⟩

e_i is the item's content plus its own residual, b_i its bias; u reads e_h plus a context vector of each item h of the
history; P_i and a_i come from how popular and how old the item is, and q_u from how popular and old the user's recent
items were; r_i is what was announced with the item (`models.likeness`), h_i when it was (`models.vintage`), w_i who
chose it (`models.cooccurrence`), v_i and η_u are factors (`models.factors`). r_up, h_up (at two paces) and w_u are the
means of those of the user's items, θ_uk and τ_uk what the user's choices of the k-th window of age say by w and by e,
δ_uk how these choices depart from η_u (`models.readings`). The s are calibration: fitted on events before the weights
learn from them, and so is what newness, counts at each half-life, and having been touched by nobody add to an item's
a_i. Published, an item is [e | b, a, P (, r) (, h) (, w) (, v) (, 1)] and a user [s_len u + Σ s_taste τ | s_bias,
s_pop, s_pop q (, Σ s_like r) (, Σ s_vint h) (, s_co w + Σ s_fold θ) (, s_fac η + Σ s_turn δ) (, base)]. For ratings it
is what `models.value_regression` makes of this one (with no scales) and of the values that the user gave.

Shape suffixes: B users or examples, N items, L places of a history, D vector size, E extras, K popularity features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import Noise
from models.encoders import FrameEncoder, InputNorm, VectorEncoder
from models.fusion import FUSIONS
from models.histories import LENGTHS, HistoryTensors
from models.likeness import PACES, direction, outlines
from models.past import WINDOWS
from models.popularity import HALF_LIVES, LEARNED, LEARNED_FEATURES, NEVER_SEEN, WEIGHED
from models.readings import Readings
from models.spec import ModelSpec
from models.user_tower import UserTower
from models.value_regression import ValueRegression

POPULARITY_DIM = 6
"""Size of P_i."""
SLOW = HALF_LIVES.index(3_000.0)
"""From this half-life on, the mean of an item's log counts is what a_i starts as."""
HEAD_WIDTH = 64
"""Width of the `mlp` head's inner layer."""
BIAS_SCALE, POPULARITY_SCALE = LENGTHS, LENGTHS + 1
LIKENESS_SCALES = slice(LENGTHS + 2, LENGTHS + 2 + PACES)
VINTAGE_SCALES = slice(LIKENESS_SCALES.stop, LIKENESS_SCALES.stop + PACES)
COOCCURRENCE_SCALE = VINTAGE_SCALES.stop
FOLD_IN_SCALES = slice(COOCCURRENCE_SCALE + 1, COOCCURRENCE_SCALE + 1 + WINDOWS)
TASTE_SCALES = slice(FOLD_IN_SCALES.stop, FOLD_IN_SCALES.stop + WINDOWS)
"""Where calibration has the scales of each term; those of the personal one, by length of history, come first."""
FACTORS_SCALE = TASTE_SCALES.stop
DEPARTURE_SCALES = slice(FACTORS_SCALE + 1, FACTORS_SCALE + 1 + WINDOWS)
SCALES = DEPARTURE_SCALES.stop

Features = Mapping[str, tuple[Tensor, Tensor]]
"""Modality → vectors (B, D) or (B, F, D), and how many vectors each row has (B,), 0 where it is missing."""


class Untouched(NamedTuple):
    """What calibration makes of items that nobody has touched."""

    appeal: float
    """What is added to their appeal, before the popularity's scale is put on it."""
    personal: float
    """What their personal part is multiplied by: it is made of content alone, which says less."""
    likeness: float
    """What their likeness is multiplied by: it says the more."""
    vintage: float
    """What their vintage is multiplied by."""


AS_OTHERS = Untouched(0.0, 1.0, 1.0, 1.0)


class Corrections(NamedTuple):
    """What calibration makes of items' own vectors."""

    weighed: tuple[float, ...]
    """What each newness and each log count, one a half-life, add to an item's appeal, before the popularity's scale is
    put on it."""
    untouched: Untouched


AS_LEARNED = Corrections((0.0,) * WEIGHED, AS_OTHERS)


def observed(encoder: nn.Module) -> int | None:
    """How many vectors an encoder's input normalisation has seen; None once it is warm."""
    norm = encoder.norm
    assert isinstance(norm, InputNorm)
    return None if norm.warm else int(norm.seen)


class Scorer(nn.Module):
    """All that is shared between items and users; what belongs to one item alone is in `models.item_tables`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoders = nn.ModuleDict({name: encoder(spec, name) for name in spec.modalities})
        self.outlines = outlines(dict(spec.modalities) if spec.likeness_dim else {}, spec.likeness_dim)
        self.fusion = FUSIONS[spec.fusion](spec.dim, len(spec.modalities)) if spec.modalities else None
        self.profiles = nn.ModuleDict({name: VectorEncoder(dim, spec.dim) for name, dim in spec.user_features.items()})
        self.tower = UserTower(spec.dim, spec.history, spec.dim if spec.user_features else 0)
        self.item_popularity = nn.Sequential(
            nn.Linear(LEARNED_FEATURES, 32), nn.GELU(), nn.Linear(32, 1 + POPULARITY_DIM)
        )  # fmt: skip
        # a ranking starts as popularity's, to be no worse than it while there is little to learn from
        self.popular = nn.Linear(LEARNED_FEATURES, 1, bias=False)
        with torch.no_grad():
            self.popular.weight.zero_()
            if spec.objective == "ranking":
                self.popular.weight[0, SLOW : len(HALF_LIVES)] = 1 / (len(HALF_LIVES) - SLOW)
        self.taste = nn.Sequential(
            nn.Linear(LEARNED_FEATURES + LENGTHS, 32), nn.GELU(), nn.Linear(32, POPULARITY_DIM)
        )  # fmt: skip
        self.head = nn.ModuleList()
        if spec.head == "mlp":
            self.head.extend((nn.Linear(2 * spec.dim, HEAD_WIDTH), nn.Linear(HEAD_WIDTH, 1)))
        self.regression: ValueRegression | None = None
        if spec.objective == "rating":
            self.regression = ValueRegression(spec.dim, dot=spec.head == "dot", together=spec.cooccurrence_dim > 0)
            # values start as those that users and items have on average, so that what is learned has to better that
            for layer in (self.item_popularity[-1], *self.head[1:]):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The item encoders' parameters and all others: together those of `parameters`, in its order."""
        encoders = list(self.encoders.parameters())
        return encoders, list(self.parameters())[len(encoders) :]

    @property
    def extras(self) -> int:
        """How many dimensions follow the personal ones in a published vector."""
        return extras(self.spec)

    def observe(self, name: str, vectors: Tensor, lengths: Tensor) -> None:
        """Let a modality's input normalisation see the rows that are there."""
        seen = observed(self.encoders[name])
        present, lengths = vectors[lengths > 0], lengths[lengths > 0]
        module = self.encoders[name]
        norm = module.norm
        assert isinstance(norm, InputNorm)
        if isinstance(module, FrameEncoder):
            module.observe(present, frame_mask(lengths, vectors.shape[1]))
        else:
            module.observe(present)  # type: ignore[operator]
        if name in self.outlines and seen is not None:
            rows = one_each(present, lengths)[: norm.warmup_rows - seen]
            self.outlines[name].observe(direction(rows, norm.shift))  # type: ignore[operator]

    def observe_users(self, name: str, vectors: Tensor, lengths: Tensor) -> None:
        """The same of a feature of users."""
        module = self.profiles[name]
        assert isinstance(module, VectorEncoder)
        module.observe(vectors[lengths > 0])

    def likeness(self, features: Features) -> Tensor:
        """What was announced with items, short enough to be published, (N, K); zeros where nothing was."""
        return self.likenesses(features).sum(1)

    def likenesses(self, features: Features) -> Tensor:
        """The same of each modality, (N, M, K)."""
        parts = []
        for name, outline in self.outlines.items():
            vectors, lengths = features[name]
            norm = self.encoders[name].norm
            assert isinstance(norm, InputNorm)
            there_N1 = (lengths > 0).unsqueeze(1)
            parts.append(outline(direction(one_each(vectors, lengths), norm.shift)) * there_N1)
        return torch.stack(parts, 1)

    def content(self, features: Features) -> Tensor:
        """The fused content of items, (N, D); zeros where an item has none."""
        return self.fused(*self.encoded(features))

    def encoded(self, features: Features, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Each modality of items encoded, (N, M, D), and which of them are there, (N, M)."""
        vectors, masks = [], []
        for name, module in self.encoders.items():
            x, lengths = features[name]
            frames = (frame_mask(lengths, x.shape[1]),) if isinstance(module, FrameEncoder) else ()
            vectors.append(module(x, *frames, noise))
            masks.append(lengths > 0)
        if not vectors:
            raise ValueError("A model without modalities has no content; use zeros.")
        return torch.stack(vectors, 1), torch.stack(masks, 1)

    def fused(self, x_NMD: Tensor, mask_NM: Tensor) -> Tensor:
        """Encoded modalities as one vector an item, (N, D)."""
        assert self.fusion is not None
        fused: Tensor = self.fusion(x_NMD, mask_NM)
        return fused

    def items(
        self,
        e_ND: Tensor,
        bias_N: Tensor,
        features_NK: Tensor,
        corrections: Corrections = AS_LEARNED,
        alike_NK: Tensor | None = None,
    ) -> Tensor:
        """Published vectors of items, (N, D + E), with the `corrections` of calibration.

        `alike_NK` are likeness, vintage, co-occurrence and factors; without, as it is while the weights learn, vectors
        are so much shorter, and so are users'.
        """
        popularity = self.item_popularity(features_NK[:, LEARNED])
        untouched_N1 = features_NK[:, NEVER_SEEN].unsqueeze(1)
        weighed, untouched = corrections
        appeal_N1 = popularity[:, :1] + self.popular(features_NK[:, LEARNED]) + untouched.appeal * untouched_N1
        if any(weighed):
            appeal_N1 = appeal_N1 + features_NK[:, : len(weighed)] @ features_NK.new_tensor(weighed).unsqueeze(1)
        parts = [e_ND, bias_N.unsqueeze(1), appeal_N1, popularity[:, 1:]]
        if alike_NK is not None:
            parts.append(alike_NK)
        if self.spec.objective == "rating":
            parts.append(e_ND.new_ones(len(e_ND), 1))
        published_NV = torch.cat(parts, dim=1)
        if untouched[1:] != AS_OTHERS[1:]:
            untouched_R = torch.nonzero(untouched_N1.squeeze(1)).squeeze(1)
            published_NV[untouched_R] *= self._factors_of(untouched, published_NV)
        return published_NV

    def _factors_of(self, untouched: Untouched, published_NV: Tensor) -> Tensor:
        """What the published vectors of untouched items are multiplied by, (V,)."""
        factor_V = published_NV.new_ones(published_NV.shape[1])
        factor_V[: self.spec.dim] = untouched.personal
        told = factor_V[self.spec.dim + 2 + POPULARITY_DIM :][: self.spec.told_dim]
        told[:] = untouched.vintage
        told[: self.spec.likeness_dim] = untouched.likeness
        return factor_V

    def users(
        self,
        x_BLD: Tensor,
        popularity_BLK: Tensor,
        past_BD: Tensor,
        inputs: HistoryTensors,
        scales: Tensor,
        *,
        profiles: Features | None = None,
        items_BLV: Tensor | None = None,
        readings: Readings | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Published vectors of users, (B, D + E), from the vectors and popularity features of their histories'
        items, and the decayed mean of the vectors of all that they chose. `items_BLV`: the published vectors of the
        histories' items, which only ratings need."""
        features = self._profile(profiles) if profiles else None
        read = self.spec.history
        recent = inputs.newest(read)
        u_BD = self.tower(x_BLD[:, :read], past_BD, recent, features, dropout=dropout, generator=generator)
        mask_BL1 = recent.mask_BL.unsqueeze(-1)
        mean_BK = (popularity_BLK[:, :read, LEARNED] * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
        length = functional.one_hot(inputs.length_B, LENGTHS).to(mean_BK)
        q_BP = self.taste(torch.cat((mean_BK, length), dim=1))
        personal_B1 = scales[inputs.length_B].unsqueeze(1)
        bias, popularity = scales[BIAS_SCALE], scales[POPULARITY_SCALE]
        ones = u_BD.new_ones(len(u_BD), 1)
        # the mlp head's network sees u itself; its output is scaled by nothing
        direct = u_BD if self.spec.head == "mlp" else personal_B1 * u_BD
        rest = [bias * ones, popularity * ones, popularity * q_BP]
        if readings is not None:
            rest.append(torch.einsum("p,bpk->bk", scales[LIKENESS_SCALES], readings.like_BPK))
            rest.append(torch.einsum("p,bpk->bk", scales[VINTAGE_SCALES], readings.vintage_BPK))
            folded_BK = torch.einsum("w,bwk->bk", scales[FOLD_IN_SCALES], readings.folded_BWK)
            rest.append(scales[COOCCURRENCE_SCALE] * readings.together_BK + folded_BK)
            factors = slice(FACTORS_SCALE, DEPARTURE_SCALES.stop)
            rest.append(torch.einsum("w,bwk->bk", scales[factors], readings.factors_BWK))
            if readings.taste_BWD is not None:
                direct = direct + torch.einsum("w,bwd->bd", scales[TASTE_SCALES], readings.taste_BWD)
        if self.regression is None:
            return torch.cat((direct, *rest), dim=1)
        if items_BLV is None:
            raise ValueError("Ratings need the published vectors of the histories' items.")
        return self.regression(direct, torch.cat(rest, dim=1), items_BLV, inputs)  # type: ignore[no-any-return]

    def _profile(self, profiles: Features) -> Tensor:
        encoded = [
            module(profiles[name][0]) * (profiles[name][1] > 0).unsqueeze(1) for name, module in self.profiles.items()
        ]
        return torch.stack(encoded).sum(0)

    def pairs(self, user_BV: Tensor, item_BV: Tensor) -> Tensor:
        """Scores of users with an item each, (B,), from published vectors."""
        if self.spec.head == "dot":
            return (user_BV * item_BV).sum(1)
        d = self.spec.dim
        network_B = self._network(torch.cat((user_BV[:, :d], item_BV[:, :d]), dim=1))
        return network_B + (user_BV[:, d:] * item_BV[:, d:]).sum(1)

    def matrix(self, user_BV: Tensor, item_NV: Tensor) -> Tensor:
        """Scores of all pairs, (B, N), from published vectors."""
        if self.spec.head == "dot":
            return user_BV @ item_NV.T
        d = self.spec.dim
        weight, bias = self._first()
        user_BW = user_BV[:, :d] @ weight[:, :d].T + bias
        item_NW = item_NV[:, :d] @ weight[:, d:].T
        inner = torch.relu(user_BW.unsqueeze(1) + item_NW.unsqueeze(0))
        return self.head[1](inner).squeeze(-1) + user_BV[:, d:] @ item_NV[:, d:].T  # type: ignore[no-any-return]

    def _first(self) -> tuple[Tensor, Tensor]:
        layer = self.head[0]
        assert isinstance(layer, nn.Linear)
        return layer.weight, layer.bias

    def _network(self, pair: Tensor) -> Tensor:
        return self.head[1](torch.relu(self.head[0](pair))).squeeze(-1)  # type: ignore[no-any-return]


def extras(spec: ModelSpec) -> int:
    """Published dimensions beyond `spec.dim`."""
    return 2 + POPULARITY_DIM + (spec.objective == "rating") + spec.alike_dim


def encoder(spec: ModelSpec, name: str) -> nn.Module:
    """The encoder of one item modality."""
    dim = spec.modalities[name]
    return FrameEncoder(dim, spec.dim) if name in spec.frames else VectorEncoder(dim, spec.dim)


def frame_mask(lengths_B: Tensor, frames: int) -> Tensor:
    """(B, F), true for each item's first `length` frames."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B.unsqueeze(1)


def one_each(vectors: Tensor, lengths_N: Tensor) -> Tensor:
    """Vectors (N, I) as they are, or the means of each item's frames (N, F, I)."""
    if vectors.ndim == 2:
        return vectors
    there_NF1 = frame_mask(lengths_N, vectors.shape[1]).unsqueeze(-1)
    return torch.where(there_NF1, vectors, 0).sum(1) / lengths_N.clamp(min=1).unsqueeze(1)


def neutral_scales(device: torch.device | str = "cpu") -> Tensor:
    """Every term as it is made, and nothing departs from what all of a user's choices say."""
    scales = torch.ones(SCALES, device=device)
    scales[DEPARTURE_SCALES] = 0
    return scales
