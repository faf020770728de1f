"""Float8 matrices: their numbers beside torch's own product and float32, their rules, and models that hold them."""

import pytest
import torch
from torch import nn

from ivlkit.errors import CheckpointError
from ivlkit.models.load import load
from ivlkit.models.modeling import float8
from ivlkit.models.modeling.float8 import E4M3, Float8Linear, check_scaled, holds_float8, multiply, quantise, to_float8


@pytest.fixture(scope="module")
def nano():
    return load("nano", quantize="float8")


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(layer, x):
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    return x.grad


class TestLayer:
    def test_a_row_by_hand(self):
        """448 is e4m3's largest; 27 lies between 26 and 28, in steps of 2, and ties go to the even one."""
        values, scale = quantise(torch.tensor([[896.0, 54.0, 1.0, -896.0], [0.0, 0.0, 0.0, 0.0]]))
        assert scale[0].item() == 2.0
        assert values.float().tolist() == [[448.0, 28.0, 0.5, -448.0], [0.0, 0.0, 0.0, 0.0]]

    def test_the_product_is_torch_s_own_up_to_its_bf16(self):
        (a, scale_a), (b, scale_b) = quantise(drawn(32, 64)), quantise(drawn(48, 64, seed=1))
        expected = torch._scaled_mm(a, b.t(), scale_a, scale_b.t(), out_dtype=torch.bfloat16)
        torch.testing.assert_close(multiply(a, b.t(), scale_a, scale_b.t()).bfloat16(), expected)

    def test_output_and_gradient_are_those_of_float32_within_the_rounding(self, linear):
        """e4m3 has 3 bits after the first one: a value is off by at most 1/16, rows of many by far less."""
        x = drawn(5, 7, 64)
        for found, expected in (
            (Float8Linear(linear)(x), linear(x)),
            (gradient_of(Float8Linear(linear), x), gradient_of(linear, x)),
        ):
            assert found.shape == expected.shape
            assert 0 < (found - expected).norm() / expected.norm() < 0.06

    def test_one_outlier_costs_its_own_row_alone(self, linear):
        x = drawn(8, 64)
        x[3, 5] = 1e5
        found, expected = Float8Linear(linear)(x), linear(x)
        others = [0, 1, 2, 4, 5, 6, 7]
        assert (found - expected)[others].norm() / expected[others].norm() < 0.06

    def test_a_card_without_float8_products_widens_the_weight_and_keeps_nothing_for_backward(self, linear, monkeypatch):
        monkeypatch.setattr(float8, "multiplies_float8", lambda device: False)
        layer, x = Float8Linear(linear), drawn(8, 64).requires_grad_()
        values = layer.weight.view(E4M3).float() * layer.scale_bits.view(torch.float32)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
            out = layer(x)
        torch.testing.assert_close(out, x @ values.t() + linear.bias)
        assert sum(one.numel() for one in kept if one.dtype not in (E4M3, torch.uint8)) == 48  # the scales
        torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], values.sum(0).expand(8, -1))

    def test_scales_stay_float32_and_weights_float8_when_a_model_becomes_bf16(self, linear):
        layer = Float8Linear(linear)
        before = layer.weight.clone(), layer.scale_bits.clone()
        layer.to(torch.bfloat16)
        assert layer.bias.dtype == torch.bfloat16 and layer.scale_bits.view(torch.float32).shape == (48, 1)
        assert torch.equal(layer.weight, before[0]) and torch.equal(layer.scale_bits, before[1])

    def test_the_output_has_the_input_s_precision_or_autocast_s(self, linear):
        layer = Float8Linear(linear).to(torch.bfloat16)
        assert layer(drawn(2, 64)).dtype == torch.float32 and layer(drawn(2, 64).bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(drawn(2, 64)).dtype == torch.bfloat16

    def test_no_rows_give_no_rows(self, linear):
        x = torch.zeros(0, 64, requires_grad=True)
        out = Float8Linear(linear)(x)
        out.sum().backward()
        assert out.shape == (0, 48) and x.grad.shape == (0, 64)

    def test_an_infinite_value_is_not_made_finite(self, linear):
        x = drawn(2, 64)
        x[0, 0] = torch.inf
        assert not Float8Linear(linear)(x)[0].isfinite().any()

    def test_compiled_whole_it_gives_the_same_for_rows_of_any_number(self, linear):
        layer = Float8Linear(linear)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        for rows in (7, 9, 33):
            x = drawn(rows, 64)
            torch.testing.assert_close(compiled(x), layer(x))
            torch.testing.assert_close(gradient_of(compiled, x), gradient_of(layer, x))


class TestRules:
    """CUDA's, on a CPU whose own product takes most of these."""

    @pytest.mark.parametrize(
        ("a", "b", "said"),
        [
            (torch.zeros(4, 32), torch.zeros(16, 32, dtype=E4M3).t(), "expected e4m3 twice"),
            (torch.zeros(4, 20, dtype=E4M3), torch.zeros(16, 20, dtype=E4M3).t(), "multiples of 16"),
            (torch.zeros(4, 32, dtype=E4M3), torch.zeros(20, 32, dtype=E4M3).t(), "multiples of 16"),
            (torch.zeros(4, 32, dtype=E4M3), torch.zeros(16, 48, dtype=E4M3).t(), r"expected \[M, K\] times"),
            (torch.zeros(4, 32, dtype=E4M3), torch.zeros(32, 16, dtype=E4M3), "by rows and b by columns"),
            (torch.zeros(32, 4, dtype=E4M3).t(), torch.zeros(16, 32, dtype=E4M3).t(), "by rows and b by columns"),
        ],
    )
    def test_what_cuda_refuses_is_refused(self, a, b, said):
        with pytest.raises(ValueError, match=said):
            check_scaled(a, b)

    def test_every_product_is_held_against_them(self, linear, monkeypatch):
        seen = []
        monkeypatch.setattr(float8, "check_scaled", lambda a, b: seen.append((a.shape, b.shape)) or check_scaled(a, b))
        gradient_of(Float8Linear(linear), drawn(3, 2, 64))
        assert seen == [((6, 64), (64, 48)), ((6, 48), (48, 64))]

    def test_a_matrix_that_does_not_fit_is_named(self, tiny):
        with pytest.raises(CheckpointError, match=r"vision_tower.*: a matrix of 24 x 24, .* expected multiples of 16"):
            load(tiny, quantize="float8")


class TestModel:
    def test_the_decoder_s_and_the_tower_s_matrices_are_float8_and_nothing_else_is(self, nano):
        swapped = {name for name, module in nano.model.named_modules() if isinstance(module, Float8Linear)}
        assert len(swapped) == 5 * 7 + 6 * 6
        assert all("language_model.layers" in name or "vision_tower.encoder" in name for name in swapped)
        others = {
            value.dtype for name, value in nano.model.named_parameters() if name.rpartition(".")[0] not in swapped
        }
        assert others == {torch.float32} and not nano.model.training

    def test_a_second_time_changes_nothing(self, nano):
        assert to_float8(nano.model) == 0 and holds_float8(nano.model)

    def test_the_number_of_parameters_stays(self, nano):
        assert repr(nano) == repr(load("nano"))

    def test_the_tower_may_stay_as_it_is(self):
        vlm = load("nano", quantize="float8", tower_device="cpu")
        assert not holds_float8(vlm.model.model.vision_tower) and holds_float8(vlm.model.model.language_model)

    def test_replies_and_losses_stay_close_to_the_unquantised_ones(self, nano):
        """nano, a row it was trained on the likes of: the loss moves by less than 5 %."""
        plain = load("nano")
        input_ids = torch.randint(3, 900, (1, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            both = [vlm.model(input_ids=input_ids).logits.softmax(-1) for vlm in (plain, nano)]
        distance = (both[0] - both[1]).abs().sum(-1).mean() / 2
        assert 0 < distance < 0.15

    def test_an_adapter_is_not_folded_into_it(self, nano):
        nano.adapter, adapter = object(), nano.adapter
        with pytest.raises(CheckpointError, match=r"ivlkit export .* --to merged, then load that"):
            nano.merge_adapter()
        nano.adapter = adapter
