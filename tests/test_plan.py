"""What `plan` prints is what a run then does, and it loads no weights."""

import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from suites import fast_only
from test_backbones import save_model
from torch.utils.flop_counter import FlopCounterMode
from worlds import prepared, settings_for, write_cycle

from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.language.backbones import lora
from recbole_llm.language.backbones.precision import WeightFormat
from recbole_llm.language.backbones.sources import load_folder
from recbole_llm.language.tokens.batches import by_length, padded_size
from recbole_llm.models.base import training_memory
from recbole_llm.settings import layers
from recbole_llm.studies import hardware
from recbole_llm.studies import plan as module

NONE = {"hardware": "rtx-4090", "price_in": None, "price_out": None}


def planned(name, folder, options=NONE, **own):
    return "\n".join(module.plan(settings_for(name, folder, **own), options))


@pytest.mark.parametrize(
    ("name", "own"),
    fast_only(
        [("CALRec", {}), ("LLMTRSR", {"max_length": 512, "eval_args.mode": "uni3"})],
        [
            ("CALRec", {}),
            ("CALRec", {"max_steps": 3, "epochs": 4}),
            ("LLMTRSR", {"max_length": 512, "eval_args.mode": "uni3"}),
            ("TALLRec", {"max_length": 512, "eval_args.mode": "uni3"}),
            ("ST5Seq", {}),
            ("RecFormer", {}),
            ("RecFormer", {"backbone": "minilm", "max_length": 128}),
            ("TASTELoRA", {}),
        ],
    ),
)
def test_tokens_steps_and_memory_are_those_of_the_training(name, own, tmp_path):
    write_cycle(tmp_path)
    text = planned(name, tmp_path, train_batch_size=4, **own)
    _, model, trainer, (train, _, _) = prepared(name, tmp_path, train_batch_size=4, **own)
    made, inner = [], trainer._step

    def step(examples):
        pieces = itertools.chain.from_iterable(map(model.pieces, examples))
        made.append(sum(map(model.cost, pieces)))
        return inner(examples)

    trainer._step = step
    trainer.fit(train)
    count, size, tokens = re.search(
        r"training: (\d+) steps of (\d+) examples, (\d+) tokens", text
    ).groups()
    assert (int(count), int(size)) == (len(made), 4)
    assert int(tokens) == pytest.approx(sum(made), rel=0.05)
    weights = training_memory.readable_bytes(sum(value.nbytes for value in model.parameters()))
    assert f"memory: weights {weights} + gradients {weights}" in text
    assert "on rtx-4090" in text and "23.6 GiB are there" in text
    assert "time, reckoned: training" in text and "the test of" in text


LARGE = {
    "lora": ({}, "", "memory: weights 12.6 GiB + gradients 76.2 MiB + optimizer 152.5 MiB"),
    "qlora": ({"quantize": "4bit"}, "", "memory: weights 3.7 GiB + gradients"),
    "in full": ({"adapter": "none"}, "", "max_length: a pass of one text of .*--adapter=lora"),
    "another GPU": ({}, "a100-80gb", "79.1 GiB are there"),
}


@pytest.mark.parametrize("name", fast_only(["in full"], LARGE))
def test_no_weights_are_read(name, tmp_path):
    """A folder of configuration and tokenizer is enough, of a model larger than any memory."""
    write_cycle(tmp_path)
    folder = tmp_path / "llama"
    save_model("Llama", folder)
    (folder / "model.safetensors").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}
    config |= {"max_position_embeddings": 4096, "head_dim": 128}
    path.write_text(json.dumps(config))
    own = {"backbone": str(folder), "adapter": "lora", "precision": "bf16", "max_length": 512}
    further, hardware, said = LARGE[name]
    given = own | {"eval_args.mode": "uni3"} | further
    options = [NONE | {"hardware": hardware}] if hardware else []
    text = planned("TALLRec", tmp_path, *options, **given)
    assert re.search(said.replace("+", r"\+"), text)


def test_summaries_have_a_price(tmp_path):
    write_cycle(tmp_path)
    own = {"summarizer": "http://127.0.0.1:9/v1", "summarizer_model": "it", "max_length": 512}
    own |= {"block_size": 2, "summary_tokens": 32, "eval_args.mode": "uni3"}
    text = planned("LLMTRSR", tmp_path, NONE | {"price_in": 1e6, "price_out": 2e6}, **own)
    requests, read, written, price = re.search(
        r"at most (\d+) requests, (\d+) tokens read, (\d+) written; .* a million: ([\d.]+)", text
    ).groups()
    assert int(written) == 32 * int(requests)
    assert float(price) == int(read) + 2 * int(written)
    assert "a million" not in planned("LLMTRSR", tmp_path, **own)


def test_what_cannot_be_planned_is_one_line(tmp_path):
    write_cycle(tmp_path)
    with pytest.raises(UserError, match="^hardware: expected one of t4, .*, found 'tpu'$"):
        planned("CALRec", tmp_path, NONE | {"hardware": "tpu"})
    with pytest.raises(UserError, match="^plan: UniSRec has no language model of its own"):
        planned("UniSRec", tmp_path)
    with pytest.raises(UserError, match="^plan: GRU4Rec has no language model of its own"):
        module.plan(layers.resolve("GRU4Rec", "any"), NONE)


def test_the_operations_are_counted_for_quantised_weights_too(tmp_path):
    write_cycle(tmp_path)
    own = {"backbone": save_model("Llama", tmp_path / "llama"), "adapter": "lora"}
    own |= {"max_length": 512, "eval_args.mode": "uni3"}
    found = []
    for quantize in ("none", "4bit"):
        spec = module.describe(settings_for("TALLRec", tmp_path, quantize=quantize, **own))
        found.append(module._Plan(spec, hardware.GPUS["t4"], NONE).cost.matrices)
    assert found[0] == found[1] > 0


def test_the_command(tmp_path, capsys, monkeypatch):
    write_cycle(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = f"plan --model=CALRec --dataset=cycle --data_path={tmp_path} --backbone=scratch:nano"
    assert cli.main([*words.split(), "--hardware=l4", "--epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("CALRec on cycle, scratch:nano, fp32, on l4\n")
    assert not (tmp_path / "saved").exists()
    assert cli.main([*words.split(), "--hardware=l5"]) == 2
    assert capsys.readouterr().err.startswith("error: hardware: expected one of t4, l4, ")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_this_machine_is_measured_in_the_precision_of_the_run(precision):
    device = hardware.measure_device(torch.device("cpu"), {precision})
    assert device.memory > 0.5 and device.rate(precision) > 0.001 and device.bandwidth > 0.1
    assert device.name == "this CPU" and device.usable == 0.6


def test_the_time_is_that_of_the_precision(tmp_path):
    write_cycle(tmp_path)
    overrides = {"backbone": save_model("Llama", tmp_path / "llama"), "adapter": "lora"}
    overrides |= {"max_length": 512, "eval_args.mode": "uni3"}
    a100 = NONE | {"hardware": "a100-80gb"}
    assert "at 40% of 19.5 TFLOP/s" in planned("TALLRec", tmp_path, a100, **overrides)
    assert "at 40% of 312 TFLOP/s" in planned(
        "TALLRec", tmp_path, a100, precision="bf16", **overrides
    )
    with pytest.raises(
        UserError, match="^hardware: t4 computes no bf16; .*precision of fp32, fp16"
    ):
        planned("TALLRec", tmp_path, NONE | {"hardware": "t4"}, precision="bf16", **overrides)


@pytest.mark.parametrize("kind", fast_only(["Llama"], ["Llama", "GPT2", "Gemma2", "Qwen2"]))
def test_a_summarizer_of_this_machine_tells_its_memory(kind, tmp_path):
    write_cycle(tmp_path)
    folder = save_model(kind, tmp_path / kind)
    overrides = {"summarizer": folder, "summarizer_length": 512, "max_length": 512, "block_size": 2}
    overrides |= {"summary_tokens": 32, "eval_args.mode": "uni3", "summarizer_parallel": 4}
    text = planned("LLMTRSR", tmp_path, **overrides)
    model = load_folder(folder).model.eval()
    with torch.no_grad():
        cache = model(torch.arange(2, 66)[None], use_cache=True).past_key_values
    # a window keeps fewer tokens in transformers' cache than in ours
    of_token = sum(2 * layer.keys.nbytes / layer.keys.shape[2] for layer in cache.layers)
    weights = sum(value.nbytes for value in model.parameters())
    assert (
        f"weights {training_memory.readable_bytes(weights)} + keys and values "
        f"{training_memory.readable_bytes(4 * 512 * of_token)} of 4 texts of at most 512 tokens"
    ) in text
    assert "time, reckoned: summaries" in text


SMALL = {
    "Llama": {"hidden_size": 32, "num_key_value_heads": 2, "intermediate_size": 64},
    "Gemma2": {
        "hidden_size": 32,
        "head_dim": 24,
        "intermediate_size": 64,
        "query_pre_attn_scalar": 8,
    },
    "GPT2": {"hidden_size": 32},
    "Bert": {"hidden_size": 32, "intermediate_size": 64},
    "T5": {"d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 3, "num_heads": 4},
}


def counted(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", SMALL)
def test_operations_are_those_that_torch_counts(kind):
    """Of a text, forward and with gradients of all weights, or of the inputs alone."""
    length = 96
    layers = {} if kind == "T5" else {"num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **SMALL[kind], **layers)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    if kind == "Bert":
        model.pooler = None  # which reads one token of each text
    cost, lengths = hardware.ModelCost(model), np.array([length])
    states = torch.randn(1, length, config.hidden_size, requires_grad=True)

    def step(learns=False):
        if kind != "T5":
            output = model(inputs_embeds=states, use_cache=False).last_hidden_state
        else:
            read = model.get_encoder()(inputs_embeds=states).last_hidden_state
            output = model.get_decoder()(
                inputs_embeds=states[:, :1], encoder_hidden_states=read, use_cache=False
            ).last_hidden_state
        if learns:
            output.sum().backward()

    near = {"rel": 0.04 if kind == "T5" else 0.01}  # T5's decoder reads one token
    half = cost.attention * length**2 if kind in ("Llama", "Gemma2", "GPT2") else 0
    operations = {}
    operations["reading"] = counted(step) - half
    operations["full"] = counted(lambda: step(True)) - 3 * half
    model.requires_grad_(False)
    operations["adapters"] = counted(lambda: step(True)) - 3 * half
    overrides = {"recomputes": False, "learned": 0.0}
    assert operations == pytest.approx(
        {
            "reading": cost.reading(lengths) * length,
            "full": cost.training(lengths, adapts=False, **overrides) * length,
            "adapters": cost.training(lengths, adapts=True, **overrides) * length,
        },
        **near,
    )


def test_logits_and_what_is_computed_again_count_too():
    config = transformers.LlamaConfig(vocab_size=50, num_hidden_layers=2, hidden_size=32)
    model = transformers.LlamaForCausalLM(config)
    cost, lengths = hardware.ModelCost(model), np.array([10, 30])
    assert cost.head == 50 * 32
    overrides = {"adapts": True, "learned": 0.0}
    once = cost.training(lengths, recomputes=False, **overrides)
    again = cost.training(lengths, recomputes=True, **overrides)
    assert again - once == pytest.approx(cost.reading(lengths))
    more = cost.training(lengths, adapts=True, recomputes=True, learned=0.5)
    assert more - again == pytest.approx(2 * 3 * 0.5 * cost.head)
    # a token is in a text of 25 tokens on average
    assert cost.reading(lengths) - 2 * cost.matrices == pytest.approx(cost.attention * 25)


def test_writing_takes_the_longer_of_products_and_bytes():
    """By hand: 10 numbers in 20 bytes, 5 of the output layer, a device of 1e12 and 1e9 a second."""
    device = hardware.Hardware("it", 1, {"bf16": 1.0}, 1.0)
    cost = SimpleNamespace(matrices=10, head=5, weight_bytes=18, packed=3)
    seconds = hardware.ModelCost.writing_seconds
    # 12 bytes are unpacked numbers, which are written and read
    assert seconds(cost, 1e6, 3, 90, "bf16", device) == pytest.approx(1e6 * 100 / 1e9 / 0.4)
    fast = hardware.Hardware("it", 1, {"bf16": 1.0}, 1e9)
    assert seconds(cost, 1e6, 3, 90, "bf16", fast) == pytest.approx(3e7 / 1e12 / 0.4)


def test_quantised_weights_are_packed(tmp_path):
    write_cycle(tmp_path)
    folder = save_model("Llama", tmp_path / "llama")
    whole, packed = (
        hardware.ModelCost(
            load_folder(folder, weight_format=WeightFormat(quantize=quantize, device="meta")).model
        )
        for quantize in ("none", "4bit")
    )
    assert whole.weight_bytes > packed.weight_bytes
    assert whole.packed == 0 and packed.packed == packed.matrices == whole.matrices


def test_active_experts_are_counted():
    config = transformers.Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=32,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        decoder_sparse_step=1,
    )
    cost = hardware.ModelCost(transformers.Qwen3MoeForCausalLM(config))
    attention, router, expert = 32 * 32 * 2 + 2 * 32 * 16, 32 * 8, 3 * 32 * 24
    assert cost.matrices == 2 * (attention + router + 2 * expert)


@pytest.mark.parametrize(
    ("name", "overrides"),
    fast_only(
        [("ST5Seq", {}), ("TASTELoRA", {})],
        [
            ("ST5Seq", {}),
            ("TASTELoRA", {}),
            ("RecFormer", {}),
            ("RecFormer", {"phase": "finetune"}),
        ],
    ),
)
def test_a_ranking_reads_what_its_cases_and_items_take(name, overrides, tmp_path, monkeypatch):
    """Texts of cases and items are counted as they are, not as those that are trained on."""
    write_cycle(tmp_path)
    settings = settings_for(name, tmp_path, test_users=5, **overrides)
    plan = module._Plan(module.describe(settings), hardware.GPUS["l4"], NONE)
    read = []
    monkeypatch.setattr(
        plan.cost, "reading", lambda lengths: read.append(lengths.sum()) or 0.0, raising=False
    )
    plan._ranking(plan.spec.split.test[:5], selecting=False)
    _, model, _, _ = prepared(name, tmp_path, test_users=5, **overrides)
    made, inner = [], type(model).vectors

    def vectors(self, tokens, *further):
        made.append(sum(map(model.cost, tokens)))
        return inner(self, tokens, *further)

    monkeypatch.setattr(type(model), "vectors", vectors)
    with torch.no_grad():
        model.eval()
        model.encode_users(plan.spec.split.test[:5])
        model.encode_items(model.first)
    assert read == made and len(made) == 2


@pytest.mark.parametrize("name", ["CALRec", "RecFormer"])
def test_the_time_is_that_of_padded_passes(name, tmp_path):
    write_cycle(tmp_path)
    spec = module.describe(settings_for(name, tmp_path, train_batch_size=16))
    plan = module._Plan(spec, hardware.GPUS["l4"], NONE)
    batches = [np.arange(16), np.arange(16, 32)]
    padding, twice = plan._passes(batches, 2048)
    computed = counted = 0
    for rows in batches:
        examples = [plan.model.examples(0)[row] for row in rows]
        pieces = list(itertools.chain.from_iterable(map(plan.model.pieces, examples)))
        sizes = [plan.model.cost(piece) for piece in pieces]
        for group in by_length(sizes, 2048, cost=plan.model.pass_cost):
            computed += len(group) * int(padded_size(max(sizes[row] for row in group)))
        counted += sum(sizes)
    assert padding == pytest.approx(computed / counted) and padding >= 1
    assert 0 <= twice <= 1


def test_validation_has_its_own_candidates(tmp_path):
    write_cycle(tmp_path)
    overrides = {"max_length": 512, "eval_args.mode": {"valid": "uni3", "test": "full"}}
    text = planned("TALLRec", tmp_path, **overrides)
    assert re.search(r"a validation of \d+ cases \(4 candidates", text)
    assert not re.search(r"the test of \d+ cases \(4 candidates", text)


def test_a_plan_that_does_not_fit_advises_what_can_be(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    little = hardware.Hardware("it", 1e-4, {"fp32": 1.0}, 1.0)
    monkeypatch.setitem(hardware.GPUS, "l4", little)
    text = planned("ST5Seq", tmp_path, NONE | {"hardware": "l4"})
    assert "max_length to less or --backbone to a smaller one" in text
    assert "--adapter" not in text and "reckoned: training" not in text


def test_one_price_is_not_enough(tmp_path):
    write_cycle(tmp_path)
    with pytest.raises(UserError, match="^price_in, price_out: expected both prices, found one"):
        planned("CALRec", tmp_path, NONE | {"price_in": 3.0})


def test_a_plan_of_summaries_writes_nothing(tmp_path):
    write_cycle(tmp_path)
    overrides = {"summarizer": "http://127.0.0.1:9/v1", "summarizer_model": "it", "max_length": 512}
    overrides |= {"block_size": 2, "summary_tokens": 32, "eval_args.mode": "uni3"}
    before = sorted(tmp_path.rglob("*"))
    planned("LLMTRSR", tmp_path, **overrides)
    assert sorted(tmp_path.rglob("*")) == before


def test_stages_may_differ_in_precision(tmp_path):
    write_cycle(tmp_path)
    overrides = {"stages": ["joint", "target"], "datasets": ["cycle"]}
    overrides |= {"stage_settings": {"joint": {"precision": "bf16"}}}
    text = planned("CALRec", tmp_path, NONE | {"hardware": None}, **overrides)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    assert f"bf16, on {name}" in text and f"fp32, on {name}" in text


@pytest.mark.parametrize("name", ["ST5Seq", "TASTELoRA"])
def test_contrastive_steps_of_several_passes_read_twice(name, tmp_path):
    write_cycle(tmp_path)
    spec = module.describe(settings_for(name, tmp_path, train_batch_size=16))
    plan = module._Plan(spec, hardware.GPUS["l4"], NONE)
    steps = [np.arange(16)]
    assert plan._passes(steps, 10**6)[1] == 0
    assert plan._passes(steps, 16)[1] == 1


def test_beams_may_write_as_much_as_the_longest_item(tmp_path):
    write_cycle(tmp_path)
    overrides = {"decoding": "constrained", "beams": 4, "max_new_tokens": 3}
    text = planned("CALRec", tmp_path, **overrides)
    _, model, _, (_, _, test) = prepared("CALRec", tmp_path, **overrides)
    count, most = re.search(
        r"the test of (\d+) cases \(4 texts each, at most (\d+) tokens\)", text
    ).groups()
    assert int(most) == int(count) * 4 * model.longest > int(count) * 4 * 3


def test_a_sample_of_items_tells_of_all(tmp_path, monkeypatch):
    """Also where a model reads its whole table at once."""
    write_cycle(tmp_path)
    seconds = []
    for count in (module.ENCODED_ITEMS, 3):
        monkeypatch.setattr(module, "ENCODED_ITEMS", count)
        spec = module.describe(settings_for("RecFormer", tmp_path, phase="finetune"))
        plan = module._Plan(spec, hardware.GPUS["l4"], NONE)
        plan._ranking_lines()
        seconds.append(plan._item_seconds)
    assert seconds[0] == seconds[1] > 0


def test_adapters_leave_the_operations_of_a_model_alone():
    """But for those of their overrides matrices, which a token of a text meets."""
    config = transformers.T5Config(vocab_size=50, **SMALL["T5"])
    model = transformers.T5Model(config)
    whole = hardware.ModelCost(model).matrices
    lora.add_lora(model, model, "", rank=2, alpha=4, dropout=0.0)
    adapters = [
        value.numel()
        for name, value in model.named_parameters()
        if "lora_" in name
        and (name.startswith("encoder") or re.search(r"EncDecAttention\.[kv]", name))
    ]
    assert adapters and hardware.ModelCost(model).matrices == whole + sum(adapters)


def test_layers_that_share_weights_and_heads():
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 6}
    albert = transformers.AlbertConfig(
        vocab_size=50, embedding_size=32, intermediate_size=64, num_hidden_groups=2, **shape
    )
    once = 4 * 32 * 32 + 2 * 32 * 64
    model = transformers.AlbertModel(albert, add_pooling_layer=False)
    assert hardware.ModelCost(model).matrices == pytest.approx(6 * once, rel=0.1)
    falcon = transformers.FalconConfig(vocab_size=50, multi_query=True, **shape)
    cost = hardware.ModelCost(transformers.FalconForCausalLM(falcon))
    assert cost.cache_bytes(torch.float32) == 6 * 2 * 8 * 4
    bloom = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_head=4, n_layer=6)
    assert hardware.ModelCost(transformers.BloomForCausalLM(bloom)).attention == 2 * 6 * 32


@pytest.mark.parametrize(("weights", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_weights_that_were_asked_for_are_planned(weights, expected, tmp_path, monkeypatch):
    write_cycle(tmp_path)
    monkeypatch.setattr(module, "in_software", lambda device, precision: True)
    overrides = {"backbone": save_model("Llama", tmp_path / "llama"), "adapter": "lora"}
    overrides |= {
        "max_length": 512,
        "eval_args.mode": "uni3",
        "precision": "bf16",
        "weights": weights,
    }
    spec = module.describe(settings_for("TALLRec", tmp_path, **overrides))
    plan = module._Plan(spec, hardware.GPUS["l4"], NONE | {"hardware": None})
    assert plan.config["weights"] == expected


def test_each_stage_reads_its_data_once(tmp_path, monkeypatch):
    write_cycle(tmp_path)
    described, inner = [], module.describe
    monkeypatch.setattr(module, "describe", lambda stage: described.append(stage) or inner(stage))
    for name in ("l4", None):
        planned("CALRec", tmp_path, NONE | {"hardware": name})
    assert len(described) == 2
