"""Fusions: the same checks over every one, and each formula on a case by hand."""

import math

import pytest
import torch

from models.fusion import FUSIONS, ConcatFusion, GatedFusion, WeightedFusion
from models.fusion_attention import AttentionFusion, CrossAttentionFusion, TransformerFusion
from models.fusion_base import masked_softmax
from models.fusion_products import RANK, BilinearFusion, MultilinearFusion
from service.reference import documented

B, M, D = 5, 3, 4


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x_BMD = torch.randn(B, M, D, generator=torch.Generator().manual_seed(seed))
    mask_BM = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    return x_BMD, mask_BM


@pytest.fixture(params=sorted(FUSIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, count: int = M, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    fusion = FUSIONS[name](D, count)
    for parameter in fusion.parameters():  # away from a start where all formulae agree
        torch.nn.init.normal_(parameter)
    return fusion


def test_any_fusion_gives_one_finite_vector_an_item(name: str) -> None:
    y_BD = build(name)(*batch())
    assert y_BD.shape == (B, D)
    assert y_BD.isfinite().all()


def test_any_fusion_gives_zeros_where_all_is_missing(name: str) -> None:
    assert torch.equal(build(name)(*batch())[3], torch.zeros(D))


def test_any_fusion_ignores_what_stands_in_a_missing_place(name: str) -> None:
    x_BMD, mask_BM = batch()
    fusion = build(name)
    spoiled_BMD = x_BMD.masked_fill(~mask_BM.unsqueeze(-1), torch.nan)
    assert torch.equal(fusion(x_BMD, mask_BM), fusion(spoiled_BMD, mask_BM))


def test_any_fusion_fuses_each_item_for_itself(name: str) -> None:
    x_BMD, mask_BM = batch()
    fusion = build(name)
    alone_BD = torch.cat([fusion(x_BMD[b : b + 1], mask_BM[b : b + 1]) for b in range(B)])
    torch.testing.assert_close(alone_BD, fusion(x_BMD, mask_BM))


def test_any_fusion_sends_finite_gradients_to_every_parameter_and_present_input(name: str) -> None:
    x_BMD, mask_BM = batch()
    x_BMD = x_BMD.masked_fill(~mask_BM.unsqueeze(-1), torch.nan).requires_grad_()
    fusion = build(name)
    torch.autograd.backward((fusion(x_BMD, mask_BM) ** 2).sum())
    assert x_BMD.grad is not None
    assert x_BMD.grad.isfinite().all()
    assert (x_BMD.grad[~mask_BM] == 0).all()
    assert (x_BMD.grad[mask_BM].abs().sum(-1) > 0).all()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", sorted(name for name in FUSIONS if list(FUSIONS[name](D, M).parameters())))
def test_a_fusion_with_parameters_learns_from_its_own_start(name: str) -> None:
    torch.manual_seed(0)
    fusion = FUSIONS[name](D, M)
    torch.autograd.backward((fusion(*batch()) ** 2).sum())
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_any_fusion_leaves_its_inputs_unchanged_and_repeats_itself(name: str) -> None:
    x_BMD, mask_BM = batch()
    fusion = build(name)
    first = fusion(x_BMD, mask_BM)
    assert torch.equal(first, fusion(x_BMD, mask_BM))
    assert torch.equal(x_BMD, batch()[0])
    assert torch.equal(mask_BM, batch()[1])
    assert torch.equal(first, build(name)(x_BMD, mask_BM))


def test_any_fusion_survives_saving_bit_for_bit(name: str) -> None:
    fusion = build(name)
    again = build(name, seed=1)
    again.load_state_dict(fusion.state_dict())
    assert torch.equal(fusion(*batch()), again(*batch()))


def test_any_fusion_takes_one_modality_and_an_empty_batch(name: str) -> None:
    fusion = build(name, count=1)
    assert fusion(torch.ones(2, 1, D), torch.ones(2, 1, dtype=torch.bool)).shape == (2, D)
    assert fusion(torch.ones(0, 1, D), torch.ones(0, 1, dtype=torch.bool)).shape == (0, D)


@pytest.mark.parametrize(("dim", "count"), [(0, 1), (4, 0)])
def test_any_fusion_refuses_nothing_to_fuse(name: str, dim: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FUSIONS[name](dim, count)


def test_sum_and_mean_by_hand() -> None:
    x_BMD = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    mask_BM = torch.tensor([[True, True, False]])
    assert FUSIONS["sum"](2, 3)(x_BMD, mask_BM).tolist() == [[4.0, 6.0]]
    assert FUSIONS["mean"](2, 3)(x_BMD, mask_BM).tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("name", ["weighted", "gated"])
def test_weights_start_as_the_mean(name: str) -> None:
    torch.testing.assert_close(FUSIONS[name](D, M)(*batch()), FUSIONS["mean"](D, M)(*batch()))


def test_weighted_renormalises_over_what_is_present() -> None:
    fusion = WeightedFusion(1, 3)
    fusion.logit_M.data = torch.tensor([1.0, 2.0, 3.0]).log()
    x_BMD = torch.tensor([[[6.0], [12.0], [24.0]]]).repeat(2, 1, 1)
    mask_BM = torch.tensor([[True, True, True], [True, False, True]])
    torch.testing.assert_close(
        fusion.weights(x_BMD, mask_BM), torch.tensor([[1 / 6, 2 / 6, 3 / 6], [1 / 4, 0.0, 3 / 4]])
    )
    torch.testing.assert_close(fusion(x_BMD, mask_BM), torch.tensor([[1.0 + 4 + 12], [1.5 + 18]]))


def test_gates_depend_on_the_item() -> None:
    fusion = GatedFusion(1, 2)
    fusion.gate.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights_BM = fusion.weights(torch.tensor([[[0.0], [5.0]], [[100.0], [5.0]]]), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(weights_BM, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def test_concat_tells_missing_from_zero() -> None:
    torch.manual_seed(0)
    fusion = ConcatFusion(D, 2)
    x_BMD = torch.tensor([[[1.0] * D, [0.0] * D]]).repeat(2, 1, 1)
    there_D, missing_D = fusion(x_BMD, torch.tensor([[True, True], [True, False]]))
    assert not torch.equal(there_D, missing_D)


def test_masked_softmax_of_an_empty_row_is_zeros_with_a_finite_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    shares = masked_softmax(logits, torch.tensor([[False, False], [True, False]]))
    assert shares.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    torch.autograd.backward(shares.sum())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_attention_is_a_softmax_over_what_each_present_modality_says() -> None:
    fusion = AttentionFusion(1, 3)
    fusion.key.weight.data.fill_(1.0)
    fusion.query.weight.data.fill_(2.0)
    fusion.modality.data = torch.tensor([[0.0], [0.5], [0.0]])
    x_BMD, mask_BM = torch.tensor([[[1.0], [-1.0], [9.0]]]), torch.tensor([[True, True, False]])
    first, second = math.exp(2 * math.tanh(1.0)), math.exp(2 * math.tanh(-0.5))
    assert fusion(x_BMD, mask_BM).item() == pytest.approx((first - second) / (first + second))


def test_bilinear_is_the_mean_and_every_pairs_product() -> None:
    fusion = BilinearFusion(1, 3)
    fusion.factor.data = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    fusion.project.weight.data.fill_(10.0)
    x_BMD = torch.tensor([[[0.1], [0.2], [0.3]]]).repeat(3, 1, 1)
    mask_BM = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    a, b, c = math.tanh(0.1), math.tanh(0.4), math.tanh(0.9)
    by_hand = [[0.2 + 10 * (a * b + a * c + b * c) / 3], [0.2 + 10 * a * c], [0.2]]
    torch.testing.assert_close(fusion(x_BMD, mask_BM), torch.tensor(by_hand))


def test_multilinear_is_the_sum_over_all_subsets_of_their_products() -> None:
    fusion = MultilinearFusion(1, 3)
    fusion.factor.data = torch.tensor([[1.0, 2.0, 3.0]] * RANK).T.reshape(3, RANK, 1, 1)
    x_BMD = torch.tensor([[[0.1], [0.2], [0.3]]]).repeat(2, 1, 1)
    mask_BM = torch.tensor([[True, True, True], [True, False, True]])
    a, b, c = 0.1, 0.4, 0.9
    by_hand = [[a + b + c + a * b + a * c + b * c + a * b * c], [a + c + a * c]]
    torch.testing.assert_close(fusion(x_BMD, mask_BM), torch.tensor(by_hand))


def test_cross_attention_adds_what_each_takes_from_the_others() -> None:
    fusion = CrossAttentionFusion(1, 3)
    for layer, weight in ((fusion.query, 1.0), (fusion.key, 2.0), (fusion.value, 3.0)):
        layer.weight.data.fill_(weight)
    x_BMD = torch.tensor([[[0.5], [-1.0], [9.0]]]).repeat(2, 1, 1)
    mask_BM = torch.tensor([[True, True, False], [False, True, False]])
    share = math.exp(0.5 * -2.0) / (1 + math.exp(0.5 * -2.0))  # the same both ways
    by_hand = [[(0.5 + share * -3.0 + -1.0 + share * 1.5) / 2], [-1.0]]  # nobody to ask: itself
    torch.testing.assert_close(fusion(x_BMD, mask_BM), torch.tensor(by_hand))


def test_transformer_is_the_mean_over_the_present_of_torchs_own_layer() -> None:
    fusion = build("transformer")
    assert isinstance(fusion, TransformerFusion)
    layer = torch.nn.TransformerEncoderLayer(
        D, fusion.heads, 2 * D, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = {
        "self_attn.in_proj_weight": fusion.query_key_value.weight,
        "self_attn.in_proj_bias": torch.zeros(3 * D),
        "self_attn.out_proj.weight": fusion.out.weight,
        "self_attn.out_proj.bias": fusion.out.bias,
        "norm1.weight": fusion.attention_norm.weight,
        "norm1.bias": fusion.attention_norm.bias,
    }
    for number, name in enumerate(("norm2", "linear1", None, "linear2")):
        if name is not None:
            theirs |= {f"{name}.{key}": value for key, value in fusion.mlp[number].state_dict().items()}
    layer.load_state_dict(theirs)
    x_BMD, mask_BM = batch()
    some_B = mask_BM.any(1)
    token_BMD = layer(x_BMD[some_B] + fusion.modality, src_key_padding_mask=~mask_BM[some_B])
    there_BM1 = mask_BM[some_B].unsqueeze(-1)
    expected_BD = torch.where(there_BM1, token_BMD, 0).sum(1) / there_BM1.sum(1)
    torch.testing.assert_close(fusion(x_BMD, mask_BM)[some_B], expected_BD)


def test_the_documentation_of_the_key_names_every_fusion() -> None:
    line = next(line for line in documented("configuration").splitlines() if line.startswith("| `fusion` |"))
    assert [name for name in FUSIONS if f"`{name}`" not in line] == []
