"""Shapes of published models, from the configs that they are published with."""

#: Fields of the config of Llama-3.1-8B, Qwen3-8B and Phi-4, by transformers' name for their kind.
SHAPES = {
    "Llama": {
        **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    },
    "Qwen3": {
        **{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128},
        **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
    },
    "Phi3": {
        **{"vocab_size": 100352, "hidden_size": 5120, "intermediate_size": 17920},
        **{"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10},
        **{"pad_token_id": 0},
    },
}


def llama_8b():
    """Make the config of Llama-3.1-8B, which is saved in bfloat16."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES["Llama"], tie_word_embeddings=False, dtype="bfloat16")


def qwen_1b():
    """Make the config of Qwen2.5-1.5B, which is saved in bfloat16."""
    from transformers import Qwen2Config

    sizes = {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960}
    layers = {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
    return Qwen2Config(**sizes, **layers, tie_word_embeddings=True, dtype="bfloat16")
