"""Encoders: what the normalisation learns, when it stops, and what missing frames do not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoders import FrameEncoder, InputNorm, VectorEncoder, positions


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 3 + 7


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_the_moments_do_not_depend_on_how_rows_were_batched(sizes: list[int]) -> None:
    x_NI = rows(sum(sizes), 3)
    norm = InputNorm(3, warmup_rows=60)
    for part in torch.split(x_NI, sizes):
        norm.observe(part)
    taken_NI = x_NI[:60].double()
    assert int(norm.seen) == len(taken_NI)
    if len(taken_NI):
        torch.testing.assert_close(norm.mean, taken_NI.mean(0))
        torch.testing.assert_close(norm.m2 / len(taken_NI), taken_NI.var(0, correction=0))


def test_warm_rows_come_out_with_mean_0_and_deviation_1() -> None:
    x_NI = rows(500, 4)
    norm = InputNorm(4)
    norm.observe(x_NI)
    y_NI = norm(x_NI)
    torch.testing.assert_close(y_NI.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y_NI.std(0, correction=0), torch.ones(4))


def test_after_warm_up_nothing_moves() -> None:
    norm = InputNorm(2, warmup_rows=10)
    norm.observe(rows(25, 2))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert norm.warm
    norm.observe(rows(25, 2, seed=1) * 100)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_before_anything_was_seen_it_is_the_identity() -> None:
    x_NI = rows(3, 2).clamp(-9, 9)
    assert torch.equal(InputNorm(2)(x_NI), x_NI)


def test_an_input_that_never_varied_is_only_centred() -> None:
    norm = InputNorm(2)
    norm.observe(torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]]))
    torch.testing.assert_close(norm(torch.tensor([[0.1, 3.0], [0.6, 3.0]])), torch.tensor([[0.0, 0.0], [0.5, 0.0]]))


def test_one_wild_value_is_clipped() -> None:
    norm = InputNorm(1)
    norm.observe(rows(100, 1))
    assert norm(torch.tensor([[1e9], [-1e9]])).tolist() == [[10.0], [-10.0]]


def test_a_large_offset_does_not_swallow_the_deviation() -> None:
    x_NI = rows(1000, 1).double() + 1e6
    norm = InputNorm(1)
    for part in torch.split(x_NI, 100):
        norm.observe(part)
    torch.testing.assert_close((norm.m2 / 1000).sqrt(), x_NI.std(0, correction=0))


def test_a_loaded_norm_goes_on_where_the_saved_one_stopped() -> None:
    first, second = rows(30, 2), rows(30, 2, seed=1)
    whole, begun, resumed = (InputNorm(2, warmup_rows=50) for _ in range(3))
    whole.observe(first)
    begun.observe(first)
    resumed.load_state_dict(begun.state_dict())
    for norm in (whole, resumed):
        norm.observe(second)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_vector_encoder_maps_any_leading_shape() -> None:
    encoder = VectorEncoder(6, 4, hidden=5)
    assert encoder(torch.ones(2, 6)).shape == (2, 4)
    assert encoder(torch.ones(2, 3, 6)).shape == (2, 3, 4)
    assert encoder(torch.ones(0, 6)).shape == (0, 4)


def frames() -> tuple[torch.Tensor, torch.Tensor]:
    mask_BF = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    return rows(12, 6).reshape(3, 4, 6), mask_BF


def test_frame_encoder_is_zero_without_frames_and_ignores_the_missing() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(6, 4)
    x_BFI, mask_BF = frames()
    encoder.observe(x_BFI, mask_BF)
    assert int(encoder.frame.norm.seen) == 6
    y_BD = encoder(x_BFI, mask_BF)
    assert torch.equal(y_BD[2], torch.zeros(4))
    assert torch.equal(y_BD, encoder(x_BFI.masked_fill(~mask_BF.unsqueeze(-1), torch.nan), mask_BF))
    # padding to more frames changes nothing
    torch.testing.assert_close(encoder(x_BFI[1:2, :2], mask_BF[1:2, :2]), y_BD[1:2])


def test_one_frame_is_that_frame_encoded() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(6, 4)
    x_BFI = rows(2, 6).unsqueeze(1)
    torch.testing.assert_close(encoder(x_BFI, torch.ones(2, 1, dtype=torch.bool)), encoder.frame(x_BFI[:, 0]))


def test_the_order_of_frames_counts() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(6, 4)
    x_BFI, mask_BF = frames()
    assert not torch.allclose(encoder(x_BFI[:1], mask_BF[:1]), encoder(x_BFI[:1].flip(1), mask_BF[:1]), atol=1e-5)


def test_gradients_reach_every_parameter_and_stay_finite() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(6, 4)
    x_BFI, mask_BF = frames()
    torch.autograd.backward((encoder(x_BFI.masked_fill(~mask_BF.unsqueeze(-1), torch.nan), mask_BF) ** 2).sum())
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("dim", [1, 4, 5])
def test_positions_are_distinct_and_of_the_size_asked_for(dim: int) -> None:
    position_FD = positions(6, dim)
    assert position_FD.shape == (6, dim)
    assert len({tuple(row) for row in position_FD.tolist()}) == 6
    assert position_FD[0, 0] == 0
