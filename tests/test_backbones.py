"""Models of four architectures in folders are trained, in full and by LoRA."""

import re

import pytest
import torch
from huggingface_hub import constants
from shops import command, rows_of, write_shop
from suites import fast_only
from worlds import FRUIT, settings_for, write_cycle

from recbole_llm.language.backbones.scratch import PAD, train_tokenizer
from recbole_llm.language.backbones.sources import SentenceBackbone, load_folder
from recbole_llm.runs.commands import run_settings

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
KINDS = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "Gemma2": SIZES | {"head_dim": 16, "sliding_window": 64},
}


def save_model(kind, folder):
    """Save a random model and its tokenizer into a folder.

    The tokenizers of Llama and Gemma have a begin token, as theirs do; that of GPT-2 has no padding
    token.
    """
    import transformers
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(
        [f"Title: {word} juice. Category: drinks. Brand: brand." for word in FRUIT], 300
    )
    if kind in ("Llama", "Gemma2"):
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        single = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        tokenizer.backend_tokenizer.post_processor = single
    if kind == "GPT2":
        tokenizer.pad_token = None
    own = KINDS[kind] | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**own)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", fast_only(["Llama"], ["Llama", "GPT2", "Qwen2", "Gemma2"]))
def test_a_model_in_a_folder_is_trained_and_loaded_again(kind, tmp_path):
    write_cycle(tmp_path, users=12)
    folder = save_model(kind, tmp_path / "pretrained")
    full = run_settings(settings_for("CALRec", tmp_path, backbone=folder, learning_rate=0.01))
    lora = run_settings(settings_for("CALRec", tmp_path, backbone=folder, adapter="lora"))
    given = load_folder(folder).model.state_dict()
    for run in (full, lora):
        stored = load_folder(str(run.folder / "backbone"))
        assert type(stored.model).__name__.startswith(kind)
        assert stored.tokenizer.pad_token_id is not None
    learned = load_folder(str(full.folder / "backbone")).model.state_dict()
    assert not any(torch.equal(given[name], learned[name]) for name in given if "proj" in name)
    assert (stored.tokenizer.pad_token == PAD) == (kind != "GPT2")  # GPT-2 pads with its end token
    assert {path.name for path in (lora.folder / "backbone").glob("*.safetensors")} == {
        "adapter_model.safetensors"
    }
    assert stored.model.peft_config["default"].base_model_name_or_path == folder


def test_a_backbone_that_is_nowhere_is_told_before_what_stands_beside_it_is_trained(
    tmp_path, monkeypatch
):
    """A backbone that was downloaded before runs without the network."""
    write_shop(tmp_path)
    arguments = (
        "--model=ST5Seq",
        "--dataset=tiny",
        "--epochs=0",
        "--show_progress=false",
        "--max_length=128",
        "--backbone=org/tiny",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    done = command(tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "saved").exists()
    assert re.match(
        r"error: backbone 'org/tiny': expected one of config.json[^\n]+\n$", done.stderr
    )
    folder = tmp_path / "hub" / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots").mkdir()
    SentenceBackbone.from_scratch(
        "nano", train_tokenizer(["red shoes", "blue tea"], 100), 128
    ).save(folder / "snapshots" / "abc")
    done = command(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert [row["model"] for row in rows_of(tmp_path)] == ["Pop", "LIR", "ST5Seq"]
