"""What is hidden while learning: how much, what never, and that nothing else is disturbed."""

import numpy as np
import torch

from models.dropout import Noise, drop, hide_modalities
from models.encoders import FrameEncoder, VectorEncoder
from models.learner import Learner
from models.memory import EventBatch, Memory
from models.spec import ModelSpec, TrainSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hidden_modalities_are_a_share_of_those_there_but_never_all_of_them() -> None:
    mask_BM = torch.rand(4_000, 3, generator=generator(1)) < 0.7
    kept_BM = hide_modalities(mask_BM, 0.4, generator())
    assert not (kept_BM & ~mask_BM).any()
    assert torch.equal(kept_BM.any(1), mask_BM.any(1))
    # one of m is out of reach, whichever it is
    for m in (1, 2, 3):
        rows = mask_BM.sum(1) == m
        share = 1 - kept_BM[rows].sum().item() / mask_BM[rows].sum().item()
        assert share < 0.4
        assert (share == 0) == (m == 1)
    all_BM = hide_modalities(mask_BM, 1 - 1e-9, generator())
    assert torch.equal(all_BM.sum(1), mask_BM.any(1).long())
    assert (all_BM.sum(0) > 500).all()


def test_nothing_is_hidden_at_0() -> None:
    mask_BM = torch.rand(50, 3, generator=generator(1)) < 0.7
    assert torch.equal(hide_modalities(mask_BM, 0.0, generator()), mask_BM)


def test_dropped_units_are_made_up_for() -> None:
    x = torch.ones(200_00)
    y = drop(x, 0.25, generator())
    assert set(y.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    torch.testing.assert_close(y.mean(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_an_encoder_is_disturbed_only_with_noise_and_the_same_for_the_same_draws() -> None:
    torch.manual_seed(0)
    x_BFI, mask_BF = torch.randn(5, 4, 6), torch.ones(5, 4, dtype=torch.bool)
    vector, frames = VectorEncoder(6, 3), FrameEncoder(6, 3)

    def one(noise: Noise | None) -> torch.Tensor:
        return vector(x_BFI[:, 0], noise)  # type: ignore[no-any-return]

    def all_of_them(noise: Noise | None) -> torch.Tensor:
        return frames(x_BFI, mask_BF, noise)  # type: ignore[no-any-return]

    for encode in (one, all_of_them):
        clean, first, again = encode(None), *(encode(Noise(0.5, 0.0, generator(7))) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, clean)
        assert torch.equal(encode(Noise(0.0, 0.5, generator(7))), clean)


def test_what_items_have_of_their_own_is_hidden_by_how_little_happened_to_them() -> None:
    spec, actions = ModelSpec(dim=2), {"default": 1.0}
    memory = Memory(spec, actions)
    items = ["once", *(["often"] * 60)]
    nothing, time = np.full(61, np.nan, np.float32), np.arange(61, dtype=np.float64)
    memory.append(EventBatch(["u"] * 61, items, ["view"] * 61, nothing, time))
    memory.announce("never", 0.0, {})
    learner = Learner(spec, TrainSpec(id_dropout=0.6, actions=actions), memory, seed=0)
    learner.pass_over(61)
    learner.contents = torch.zeros(3, 2)
    steps = [learner.objective.leaves(None, torch.tensor([0]))[2] for _ in range(4_000)]
    shown = torch.stack(steps).float().mean(0)
    expected = 1 - 0.6 * 20 / (20 + torch.tensor([1.0, 60.0]))
    torch.testing.assert_close(shown[:2], expected, atol=0.03, rtol=0)
    assert shown[2] == 0  # nothing of its own yet
    assert learner.objective.leaves(None)[2].tolist() == [True, True, False]
