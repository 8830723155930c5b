"""Random causal language models of many architectures, small."""

import torch

FAMILIES = {
    "llama": ("Llama", {}),
    "llama, grouped heads": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", {}),
    "mistral, window": ("Mistral", {"sliding_window": 9, "num_key_value_heads": 2}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2, window, soft caps": (
        "Gemma2",
        {
            "sliding_window": 9,
            "head_dim": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3, window": ("Gemma3Text", {"sliding_window": 9, "head_dim": 16}),
}


def random_model(family: str, tokenizer):
    """A causal LM whose weights are sharp enough for mistakes to show."""
    import transformers

    name, own = FAMILIES[family]
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if name == "GPT2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **common)
        kind = transformers.GPT2LMHeadModel
    else:
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
        kind = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
        config = getattr(transformers, f"{name}Config")(**(sizes | common | own))
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.set_attn_implementation("eager")
    return model
