"""The layers that an adapter is put on, in dense models and in mixtures of experts."""

import re

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from agentsafe.errors import UserError
from agentsafe.training.config import Lora
from agentsafe.training.lora import lora_config

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
MODELS = {
    "llama": (LlamaConfig(**SIZES), ATTENTION | MLP),
    "phi3": (Phi3Config(**SIZES), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "mixtral": (MixtralConfig(**SIZES, num_local_experts=4), ATTENTION),
    "qwen3_moe": (Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16), ATTENTION),
    "qwen2_moe": (
        Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=16, mlp_only_layers=[0]),
        ATTENTION,
    ),
    "gpt_oss": (GptOssConfig(**SIZES, num_local_experts=4, head_dim=16), ATTENTION),
    "deepseek_v3": (
        DeepseekV3Config(
            **SIZES,
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        MLA,
    ),
}


def model_of(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[name][0])


def adapted(lora, name):
    model = model_of(name)
    return get_peft_model(model, lora_config(lora, model))


def trained(model):
    """The names of the layers that train, without those around them."""
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    return {re.split(r"\.(?:base_layer\.)?lora_[AB]", name)[0] for name in names}


@pytest.mark.filterwarnings("error:The following rank_pattern")
@pytest.mark.parametrize("name", MODELS)
def test_all_linear_layers_train_but_no_expert_and_no_router(name):
    found = trained(adapted(Lora(r=4, dropout=0.1), name))
    assert {each.rpartition(".")[2] for each in found} == MODELS[name][1]
    assert not any(re.search(r"\.(experts|gate|router|shared_expert_gate)$", n) for n in found)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_and_routers_train_where_they_are_named(name):
    router = "router" if name == "gpt_oss" else "gate"
    found = trained(adapted(Lora(r=4, target_modules=("q_proj", "experts", router)), name))
    assert {each.rpartition(".")[2] for each in found} == {"q_proj", "experts", router}


def test_merged_experts_compute_what_their_adapter_computes():
    model = adapted(Lora(r=4, target_modules=("experts",)), "mixtral").eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = model(tokens).logits
        after = model.merge_and_unload()(tokens).logits
    assert (before - model_of("mixtral").eval()(tokens).logits).abs().max() > 1e-3
    assert (before - after).abs().max() < 1e-4


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"dora": True}])
def test_what_stacked_experts_cannot_have_is_one_line(setting):
    lora = Lora(r=4, target_modules=("experts",), **setting)
    with pytest.raises(
        UserError, match=rf"training\.lora\.{next(iter(setting))}: .*experts"
    ) as caught:
        lora_config(lora, model_of("mixtral"))
    assert "\n" not in str(caught.value)


def test_a_layer_that_the_model_lacks_is_named_with_those_it_has():
    lora = Lora(target_modules=("q_proj", "c_attn"))
    with pytest.raises(UserError, match="no layer 'c_attn'; it has down_proj, gate_proj, k_proj"):
        lora_config(lora, model_of("llama"))
    with pytest.raises(UserError, match="no layer 'up_proj'; it has experts, gate, k_proj, o_proj"):
        lora_config(Lora(target_modules=("up_proj",)), model_of("mixtral"))
