"""Packed layers against torch's own."""

import pytest
import torch
import transformers
from torch import nn

from tt_ray.text.families import FAMILIES
from tt_ray.text.packed_linear import PackedLinear, pack_linears

SIZES = {
    **dict.fromkeys(("hidden_size", "dim", "intermediate_size", "hidden_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads", "num_key_value_heads"), 2),
    **{"head_dim": 8, "vocab_size": 20, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": 16},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (1024, 24), (3, 7, 24)])
def test_a_packed_layer_is_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 17, bias=bias)
    values = torch.randn(shape)
    with torch.inference_mode():
        out = PackedLinear(linear, 1024)(values)
        torch.testing.assert_close(out, linear(values), rtol=1e-5, atol=1e-6)


def test_layers_are_packed_at_any_depth_and_keep_nothing_of_the_old_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 4)), nn.LayerNorm(4))
    values = torch.randn(5, 8)
    with torch.inference_mode():
        before = model(values)
        pack_linears(model, 16)
        torch.testing.assert_close(model(values), before, rtol=1e-5, atol=1e-6)
    assert [type(module) for module in model.modules()].count(PackedLinear) == 2
    assert set(dict(model.named_parameters())) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.packed])
def test_families_give_the_same_states(family: str) -> None:
    config = transformers.AutoConfig.for_model("clip_text_model" if family == "clip" else family, **SIZES)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    ids = torch.tensor([[3, 4, 5, 2], [6, 7, 2, 1]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    before = model(**inputs).last_hidden_state
    pack_linears(model, 8)
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    torch.testing.assert_close(model(**inputs).last_hidden_state, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["_linear_pointwise", "_reorder_linear_weight"])
def test_torch_has_the_private_operators(name: str) -> None:
    assert hasattr(torch.ops.mkldnn, name), f"torch.ops.mkldnn.{name} is gone: see tt_ray/text/packed_linear.py"


def test_a_torch_without_them_computes_the_same_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = nn.Sequential(nn.Linear(8, 4)), torch.randn(5, 8)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    with pytest.warns(UserWarning, match=f"torch {torch.__version__.split('+')[0]}.* packs no weights"):
        pack_linears(model, 16)
    assert type(model[0]) is nn.Linear and model(values).shape == (5, 4)
