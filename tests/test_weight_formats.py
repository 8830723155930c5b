"""Frozen weights in bfloat16, in 8 and in 4 bits: what trains, what is stored, what is merged."""

import json
from types import SimpleNamespace

import pytest
import torch
from suites import fast_only
from test_backbones import save_model
from worlds import prepared, scores_of, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones import lora, precision, quantizing, sources
from recbole_llm.language.backbones.precision import WeightFormat
from recbole_llm.language.backbones.shallow import is_float32, shallow_copy
from recbole_llm.language.backbones.sources import Backbone, load_folder
from recbole_llm.language.decoding import compatibility
from recbole_llm.models.base.backbone_model import BackboneModel
from recbole_llm.runs.commands import evaluate_run, run_settings

LORA = {"adapter": "lora", "max_length": 512, "lora_dropout": 0.0}
FOUR = WeightFormat(quantize="4bit")


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def folder_of(kind, tmp_path):
    write_cycle(tmp_path, users=12)
    return save_model(kind, tmp_path / kind)


def adapted(folder, form, rank=4):
    """A model under adapters whose second matrices are not zero."""
    bundle = load_folder(folder, weight_format=form, merges=True)
    lora.add_lora(bundle.model, bundle.core, folder, rank=rank, alpha=8, dropout=0.0)
    torch.manual_seed(1)
    for name, parameter in bundle.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return bundle


def logits(bundle):
    with torch.no_grad():
        return bundle.model.eval()(input_ids=torch.arange(2, 22)[None]).logits.float()


@pytest.mark.parametrize("kind", fast_only(["Llama"], ["Llama", "GPT2", "Gemma2", "Qwen2"]))
@pytest.mark.parametrize("quantize", fast_only(["4bit"], ["4bit", "8bit"]))
def test_gradients_through_quantised_weights_are_those_of_the_numbers_they_stand_for(
    kind, quantize, tmp_path, bitsandbytes
):
    """Also after an answer without gradients, for which bitsandbytes may pack 4-bit weights."""
    folder = folder_of(kind, tmp_path)
    found = []
    for whole in (False, True):
        bundle = load_folder(folder, weight_format=WeightFormat(quantize=quantize))
        if whole:
            quantizing.dequantize_weights(bundle.model, torch.float32)
            assert is_float32(bundle.model) and not getattr(bundle.model, "hf_quantizer", None)
        lora.add_lora(bundle.model, bundle.core, folder, rank=4, alpha=8, dropout=0.0)
        torch.manual_seed(1)
        for name, parameter in bundle.model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        logits(bundle)
        bundle.model.train()
        bundle.model(input_ids=torch.arange(2, 34).view(2, 16)).logits.square().mean().backward()
        found.append({key: value.grad for key, value in bundle.model.named_parameters()})
    trained = [key for key, value in found[0].items() if value is not None]
    assert trained and all("lora_" in key for key in trained)
    for key in trained:
        assert found[1][key].abs().max() > 0
        # 8-bit products round their inputs too
        near = {"4bit": {"rtol": 1e-4, "atol": 1e-7}, "8bit": {"rtol": 0.1, "atol": 2e-3}}[quantize]
        assert torch.allclose(found[0][key], found[1][key], **near), key


def test_four_bits_are_those_of_qlora(tmp_path, monkeypatch, bitsandbytes):
    # as on a CPU for which it would pack them
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = load_folder(folder_of("Llama", tmp_path), weight_format=FOUR).model
    layers = [one for one in model.modules() if isinstance(one, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
        assert layer.compute_dtype == torch.float32 and not layer.support_avx512bf16_for_cpu
    form = WeightFormat(torch.bfloat16, "4bit", torch.bfloat16)
    model = load_folder(str(tmp_path / "Llama"), weight_format=form).model
    layer = next(one for one in model.modules() if isinstance(one, bitsandbytes.nn.Linear4bit))
    assert layer.compute_dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", fast_only(["GPT2"], ["Llama", "GPT2"]))
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantising_in_memory_equals_reading_quantised(kind, quantize, tmp_path, bitsandbytes):
    folder, form = folder_of(kind, tmp_path), WeightFormat(quantize=quantize)
    read = load_folder(folder, weight_format=form).model
    made = load_folder(folder).model
    quantizing.quantize_weights(made, form)
    quantizing.keep_gradients(made)
    assert [type(one) for one in read.modules()] == [type(one) for one in made.modules()]
    expected, found = read.state_dict(), made.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        same = torch.equal(value, found[key]) if torch.is_tensor(value) else value == found[key]
        assert same, key
    assert torch.equal(logits(Backbone(read, None)), logits(Backbone(made, None)))


def test_adapters_over_quantised_weights_are_merged_into_the_numbers_they_were_trained_over(
    tmp_path, bitsandbytes
):
    """As QLoRA's are: into the dequantised weights, and not into those of the base's files."""
    folder = folder_of("Llama", tmp_path)
    own = LORA | {"backbone": folder, "quantize": "4bit", "learning_rate": 0.01, "epochs": 2}
    run = run_settings(settings_for("CALRec", tmp_path, **own))
    path = str(run.folder / "backbone")
    live = logits(load_folder(path, weight_format=FOUR))
    assert torch.equal(logits(load_folder(path)), live)  # what it was trained over is known
    merged = load_folder(path, merges=True)
    assert is_float32(merged.model)
    assert torch.allclose(logits(merged), live, rtol=1e-4, atol=1e-4)
    base = load_folder(folder)
    lora.load_adapters(base.core, run.folder / "backbone")
    wrong = (logits(base.merged()) - live).abs().max()
    again = (logits(load_folder(path, weight_format=FOUR, merges=True)) - live).abs().max()
    assert wrong > 1e-3 and again > 0  # to quantise once more is a further rounding
    second = run_settings(
        settings_for("CALRec", tmp_path, **LORA | {"init_from": run.folder.name, "epochs": 1})
    )
    start = load_folder(str(second.folder / "backbone"))
    names = {type(one).__name__ for one in start.model.modules()}
    assert "Linear4bit" not in names
    again = evaluate_run(
        second.folder, json.loads((second.folder / "run.json").read_text())["settings"]
    )
    assert again.row["test"] == second.row["test"]


def test_adapters_stay_float32_over_weights_in_bfloat16(tmp_path):
    folder = folder_of("Llama", tmp_path)
    form = WeightFormat(torch.bfloat16)
    bundle = adapted(folder, form)
    types = {
        "lora_" in name: parameter.dtype for name, parameter in bundle.model.named_parameters()
    }
    assert types == {True: torch.float32, False: torch.bfloat16}
    bundle.save(tmp_path / "stored")
    again = load_folder(str(tmp_path / "stored"), weight_format=form)
    assert not again.model.training
    for name, value in bundle.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[name]), name


def test_merging_rounds_once(tmp_path):
    folder = folder_of("Llama", tmp_path)
    adapted(folder, WeightFormat()).save(tmp_path / "stored")
    exact = load_folder(str(tmp_path / "stored"), merges=True).model.state_dict()
    short = load_folder(
        str(tmp_path / "stored"), weight_format=WeightFormat(torch.bfloat16), merges=True
    )
    base = load_folder(folder).model.state_dict()
    for name, value in short.model.state_dict().items():
        # that of the base, which is read rounded, and that of the sum
        bound = 2**-8 * (exact[name].abs() + base[name].abs()) + 1e-6
        assert ((value.float() - exact[name]).abs() <= bound).all(), name


@pytest.mark.parametrize("name", fast_only(["TALLRec"], ["TALLRec", "CALRec", "ST5Seq"]))
def test_a_run_over_weights_in_bfloat16_is_stored_read_and_evaluated(name, tmp_path):
    write_cycle(tmp_path, users=12)
    own = {"adapter": "lora", "precision": "bf16", "weights": "bfloat16", "max_length": 128}
    if name == "ST5Seq":
        from test_embedding import t5_folder

        own["backbone"] = t5_folder(tmp_path / "t5", sentinels=True)
    else:
        own |= {"backbone": save_model("Llama", tmp_path / "llama"), "max_length": 512}
    own["eval_args.mode"] = "uni3"
    run = run_settings(settings_for(name, tmp_path, **own))
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    assert evaluate_run(run.folder, settings).row["test"] == run.row["test"]
    _, model, _, _ = prepared(name, tmp_path, **own)
    frozen = [one for one in model.parameters() if not one.requires_grad]
    assert {one.dtype for one in frozen} == {torch.bfloat16}
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}


def test_no_pass_keeps_a_copy_of_a_frozen_weight(tmp_path):
    write_cycle(tmp_path, users=12)
    own = LORA | {"backbone": save_model("Llama", tmp_path / "llama"), "precision": "bf16"}
    kept = {}
    for weights in ("float32", "bfloat16"):
        _, model, trainer, _ = prepared("CALRec", tmp_path, weights=weights, **own)
        frozen = {
            parameter.shape: parameter.data_ptr()
            for name, parameter in model.named_parameters()
            if name.endswith("proj.base_layer.weight")
        }
        shapes = {*frozen, *(shape[::-1] for shape in frozen)}
        pointers = {value.data_ptr() for value in model.parameters()}
        copies = []

        def pack(tensor, shapes=shapes, pointers=pointers, copies=copies):
            if tensor.shape in shapes and tensor.untyped_storage().data_ptr() not in pointers:
                copies.append(tensor.shape)
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._gradients(list(model.examples(0)[:4]))
        kept[weights] = len(copies)
    assert kept["bfloat16"] == 0 < kept["float32"]


@pytest.mark.parametrize(("checkpoint", "keeps"), [("false", True), ("true", False)])
def test_casts_of_all_weights_are_not_kept_beside_activations_that_are_not(
    checkpoint, keeps, tmp_path
):
    write_cycle(tmp_path, users=12)
    _, model, _, _ = prepared("CALRec", tmp_path, checkpoint=checkpoint, precision="bf16")
    with model.autocast():
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled() == keeps


def test_item_vectors_are_computed_in_the_precision_of_the_settings(tmp_path):
    write_cycle(tmp_path, users=12)
    _, model, _, (_, _, test) = prepared("ST5Seq", tmp_path, precision="bf16")
    inner, within = model.encode_items, []

    def encode_items(items):
        within.append(torch.is_autocast_enabled("cpu"))
        return inner(items)

    model.encode_items = encode_items
    scores_of(model, test._dataset, test._dataset.cases)
    assert within == [True]


@pytest.mark.parametrize(
    ("device", "quantize", "places"),
    [
        ("cuda", "none", ["cpu", "cuda"]),
        ("cuda", "4bit", ["cuda"]),
        ("cpu", "none", ["cpu"]),
    ],
)
def test_a_judge_is_set_aside_while_a_summarizer_writes_on_a_gpu(device, quantize, places):
    moved = []
    judge = SimpleNamespace(
        device=device,
        weight_format=WeightFormat(quantize=quantize),
        backbone=SimpleNamespace(to=lambda place: moved.append(str(place))),
    )
    with pytest.raises(UserError), BackboneModel.set_aside(judge):
        assert moved == places[:-1]
        raise UserError("the summarizer has failed")
    assert moved == places


@pytest.mark.parametrize("kind", fast_only(["Gemma2"], ["Llama", "GPT2", "Qwen2", "Gemma2"]))
def test_a_copy_of_all_layers_is_the_model(kind, tmp_path):
    bundle = load_folder(folder_of(kind, tmp_path))
    copied = Backbone(shallow_copy(bundle.model, 9), bundle.tokenizer)
    assert torch.equal(logits(copied), logits(bundle))
    short = load_folder(str(tmp_path / kind), weight_format=WeightFormat(torch.bfloat16))
    whole = shallow_copy(short.model, 1)
    assert is_float32(whole) and len(list(whole.base_model.children())) > 1


@pytest.mark.parametrize("quantize", fast_only(["none"], ["none", "8bit", "4bit"]))
def test_wrong_attention_is_found_under_the_rounding_of_short_weights(
    quantize, tmp_path, monkeypatch
):
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    form = WeightFormat(torch.bfloat16, quantize, torch.bfloat16)
    bundle = load_folder(folder_of("Llama", tmp_path), weight_format=form)
    compatibility.check_backbone(bundle, "it")
    inner = torch.nn.functional.scaled_dot_product_attention

    def slightly_wrong(query, key, value, *args, **kwargs):
        return inner(query, key, value * (1.01 if query.shape[0] == 1 else 1), *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", slightly_wrong)
    with pytest.raises(UserError, match="cannot be used here"):
        compatibility.check_backbone(bundle, "it")


def test_logits_of_some_tokens(tmp_path):
    bundle = load_folder(folder_of("Gemma2", tmp_path))
    states = torch.randn(3, 32)
    whole = bundle.logits(states)
    assert torch.allclose(bundle.logits(states, [5, 2]), whole[:, [5, 2]], atol=1e-6)
    short = load_folder(str(tmp_path / "Gemma2"), weight_format=WeightFormat(torch.bfloat16))
    found = short.logits(states)
    assert found.dtype == torch.float32 and torch.allclose(found, whole, atol=0.05)


def test_losses_of_tokens_in_pieces(tmp_path, monkeypatch):
    bundle = load_folder(folder_of("Llama", tmp_path))
    monkeypatch.setattr(sources, "LOGITS", 1000)  # three tokens at a time
    labels = torch.arange(10)
    labels[4] = sources.IGNORED
    found = []
    for recomputes in (False, True):
        bundle.recomputes = recomputes
        states = torch.randn(10, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        losses = bundle.token_losses(states, labels)
        total = bundle.token_losses(states, labels, "sum")
        assert losses[4] == 0 and torch.allclose(losses.sum(), total)
        found.append((losses, torch.autograd.grad(total, states)[0]))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"weights": "bfloat16", "precision": "bf16"}, "weights: bfloat16 is for frozen weights"),
        (LORA | {"weights": "bfloat16"}, "weights: bfloat16 has no products with the float32 of"),
        (
            LORA | {"weights": "bfloat16", "precision": "fp16"},
            "weights: bfloat16 has no products with the float32 of precision: fp16",
        ),
        ({"quantize": "4bit"}, "quantize: weights of 4bit are not trained; set --adapter=lora"),
        ({"weights": "float16"}, "weights: expected auto, float32 or bfloat16, found 'float16'"),
        ({"checkpoint": "yes"}, "checkpoint: expected auto, true or false, found 'yes'"),
        ({"pass_tokens": "all"}, "pass_tokens: expected a whole number from 1 up, or auto, found"),
        ({"precision": "int8"}, "precision: expected fp32, bf16 or fp16, found 'int8'"),
    ],
)
def test_formats_that_contradict_each_other_are_one_line(own, said, tmp_path):
    write_cycle(tmp_path, users=12)
    with pytest.raises(UserError, match=said) as raised:
        run_settings(settings_for("CALRec", tmp_path, **own))
    assert "\n" not in str(raised.value) and not (tmp_path / "saved").exists()


def test_a_gpu_without_bf16_is_one_line(monkeypatch):
    """As it is before Ampere: V100, T4."""
    config = dict.fromkeys(("weights", "adapter")) | {"device": "cuda:0", "precision": "bf16"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match="^precision: Tesla T4 computes no bf16; set --precision="):
        precision.check_precision(config)
    precision.check_precision(config | {"precision": "fp16"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    precision.check_precision(config)


def test_what_is_quantised_already_is_not_quantised_again(tmp_path, bitsandbytes):
    folder = folder_of("Llama", tmp_path)
    config = tmp_path / "Llama" / "config.json"
    described = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    config.write_text(json.dumps(described))
    own = LORA | {"backbone": folder, "quantize": "8bit"}
    with pytest.raises(UserError, match=r"holds weights that are quantised already \(gptq\)"):
        run_settings(settings_for("CALRec", tmp_path, **own))
    pytest.importorskip("gguf")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"quantised already \(GGUF\); leave 4bit out"):
        quantizing.check_unquantized(gguf, "4bit")


def test_frozen_weights_are_short_where_the_device_computes_it(monkeypatch):
    config = {"device": "cpu", "adapter": "lora", "weights": "auto", "quantize": None}
    monkeypatch.setattr(precision, "in_software", lambda device, kind: False)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}
    for kind, dtype in expected.items():
        assert precision.weight_format(config | {"precision": kind}).dtype == dtype
    bf16 = config | {"precision": "bf16"}
    assert precision.weight_format(bf16 | {"adapter": "none"}).dtype == torch.float32
    assert precision.weight_format(bf16 | {"weights": "float32"}).dtype == torch.float32
    monkeypatch.setattr(precision, "in_software", lambda device, kind: True)
    assert precision.weight_format(bf16).dtype == torch.float32
