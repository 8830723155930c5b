"""Damaged, foreign or untrusted model files end in one line.

None of them leads to a traceback, and none to an endless wait.
"""

import json
import random
import shutil
import signal
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones import save_model
from test_embedding import t5_folder
from worlds import settings_for, t5, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.encoder_decoder import FusionBackbone
from recbole_llm.language.backbones.loading import as_user_errors
from recbole_llm.language.backbones.sources import (
    Backbone,
    EncoderBackbone,
    SentenceBackbone,
    check_model_name,
    load_folder,
    model_folder,
)
from recbole_llm.runs.commands import run_settings

TEXTS = ["Title: red dog bowl.", "Brand: apple and banana, of 1996"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a small folder of each kind of backbone, with the class that reads it."""
    folder = tmp_path_factory.mktemp("kinds")
    from recbole_llm.language.backbones.scratch import sentence_model, train_tokenizer

    sentence = folder / "sentence"
    sentence_model("tiny", train_tokenizer(TEXTS * 4, 320), 64).save_pretrained(str(sentence))
    return {
        "causal": (Path(save_model("Llama", folder / "llama")), Backbone),
        "t5": (t5(folder / "t5", TEXTS), FusionBackbone),
        "sentence": (sentence, SentenceBackbone),
        "encoder": (sentence, EncoderBackbone),
    }


@contextmanager
def no_longer_than(seconds):
    """Raise TimeoutError in a loop without end."""

    def stop(*_):
        raise TimeoutError(f"not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def loads(folder, kind) -> bool:
    """Return whether a folder loads and reads a text; only a UserError means that it does not."""
    try:
        with no_longer_than(300):
            bundle = load_folder(str(folder), kind)
            ids = bundle.tokenizer("dog bowl")["input_ids"]
            core = bundle.core
            if len(ids) and not core.config.is_encoder_decoder:
                with torch.no_grad():
                    core(input_ids=torch.tensor([ids]))
        return True
    except UserError as error:
        assert "\n" not in str(error)
        return False


def rename(folder, change):
    """Rewrite the keys of a folder's weights."""
    path = folder / "model.safetensors"
    tensors = {change(name): value for name, value in load_file(path).items()}
    save_file({n: v for n, v in tensors.items() if n}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["causal", "t5", "sentence", "encoder"])
@pytest.mark.parametrize("change", ["renamed", "one missing", "another shape", "no numbers at all"])
def test_weights_that_are_not_all_there_are_refused(folders, tmp_path, kind, change):
    source, reader = folders[kind]
    folder = shutil.copytree(source, tmp_path / "copy")
    path = folder / "model.safetensors"
    if change == "renamed":  # as DataParallel saves
        rename(folder, lambda name: f"module.{name}")
    elif change == "one missing":
        last = sorted(load_file(path))[-1]
        rename(folder, lambda name: None if name == last else name)
    elif change == "another shape":
        tensors = load_file(path)
        name = sorted(tensors)[-1]
        tensors[name] = torch.zeros([size + 1 for size in tensors[name].shape])
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="is no whole|cannot be loaded"):
        load_folder(str(folder), reader)


def test_a_pooler_may_be_missing(tmp_path):
    """Nothing here reads BERT's own pooler."""
    folder = shutil.copytree(model_folder("minilm"), tmp_path / "minilm")
    assert any("pooler" in name for name in load_file(folder / "model.safetensors"))
    rename(folder, lambda name: None if "pooler" in name else name)
    assert loads(folder, SentenceBackbone)


@pytest.mark.parametrize(
    "model,key",
    [
        ("ST5Seq", "backbone"),
        ("RecFormer", "backbone"),
        ("UniSRec", "text_encoder"),
        ("SASRec", "text_encoder"),
    ],
)
def test_a_pretrained_encoder_under_other_names_is_refused(tmp_path, model, key):
    write_cycle(tmp_path)
    folder = shutil.copytree(model_folder("minilm"), tmp_path / "minilm")
    rename(folder, lambda name: f"module.{name}")
    own = {key: str(folder)} | ({"item_features": "text"} if model == "SASRec" else {})
    with pytest.raises(UserError, match=f"^{key} .* is no whole sentence encoder: .* missing"):
        run_settings(settings_for(model, tmp_path, **own))
    assert not list((tmp_path / "saved").glob("*/run.json"))


def test_dense_layers_are_checked_too(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    plain = t5_folder(tmp_path / "t5", sentinels=True)
    core = Transformer(str(plain))
    width = core.get_embedding_dimension()
    dense = Dense(width, 24, bias=False, activation_function=torch.nn.Identity())
    folder = tmp_path / "sentence-t5"
    SentenceTransformer(modules=[core, Pooling(width), dense], device="cpu").save_pretrained(
        str(folder)
    )
    assert load_folder(str(folder), SentenceBackbone).width == 24
    (path,) = folder.glob("*Dense*/model.safetensors")
    whole, config = path.read_bytes(), path.parent / "config.json"
    for tensors in ({}, {"other.weight": torch.zeros(2, 2)}, {"linear.weight": torch.zeros(3, 3)}):
        save_file(tensors, path)
        with pytest.raises(UserError, match="cannot be loaded"):
            load_folder(str(folder), SentenceBackbone)
    path.write_bytes(whole)
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"activation_function": "mine.Activation"}))
    with pytest.raises(UserError, match="has code of its own.*--trust_remote_code=true"):
        load_folder(str(folder), SentenceBackbone)


def adapter(source, folder, **own):
    """Write a folder of PEFT's that names its base by a path."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(source)
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"]} | own
    model = get_peft_model(base, LoraConfig(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    model.save_pretrained(folder)
    path = Path(folder) / "adapter_config.json"
    written = json.loads(path.read_text()) | {"base_model_name_or_path": str(source)}
    path.write_text(json.dumps(written))
    return Path(folder), model


def test_adapters_of_peft_itself_are_read(folders, tmp_path):
    folder, theirs = adapter(folders["causal"][0], tmp_path / "lora")
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids).logits
        live = load_folder(str(folder))
        assert torch.allclose(live.model.eval()(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.allclose(live.merged().model(input_ids=ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    "own,found",
    [
        ({"modules_to_save": ["lm_head"]}, "found modules_to_save"),
        ({"trainable_token_indices": [3, 4]}, "found trainable_token_indices"),
        ({"bias": "all"}, "found bias"),
    ],
)
def test_adapters_with_more_than_lora_are_refused(folders, tmp_path, own, found):
    folder, _ = adapter(folders["causal"][0], tmp_path / "lora", **own)
    with pytest.raises(UserError, match=f"{found}; merge them .* by PEFT's merge_and_unload"):
        check_model_name(str(folder), tmp_path)
    with pytest.raises(UserError, match=found):
        load_folder(str(folder))


def test_adapters_with_new_tokens_are_one_line(folders, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    source = folders["causal"][0]
    base = AutoModelForCausalLM.from_pretrained(source)
    base.resize_token_embeddings(base.config.vocab_size + 8)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    path = tmp_path / "lora" / "adapter_config.json"
    written = json.loads(path.read_text()) | {"base_model_name_or_path": str(source)}
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match="lora' cannot be loaded|do not fit"):
        load_folder(str(tmp_path / "lora"))


@pytest.mark.parametrize(
    "change", ["missing weight", "foreign layer", "no json", "no base", "base gone", "no weights"]
)
def test_damaged_adapters_are_one_line(folders, tmp_path, change):
    folder, _ = adapter(folders["causal"][0], tmp_path / "lora")
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, written = load_file(path), json.loads(config.read_text())
    if change == "missing weight":
        del tensors[sorted(tensors)[0]]
        save_file(tensors, path)
    elif change == "foreign layer":
        name = sorted(tensors)[0]
        save_file(tensors | {name.replace("layers.0", "layers.9"): tensors[name].clone()}, path)
    elif change == "no json":
        config.write_text("{")
    elif change == "no base":
        config.write_text(json.dumps(written | {"base_model_name_or_path": None}))
    elif change == "base gone":
        config.write_text(json.dumps(written | {"base_model_name_or_path": str(tmp_path / "x")}))
    else:
        path.unlink()
    with pytest.raises(UserError):
        load_folder(str(folder))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def marked(self):
        return "by its own code"
"""


@pytest.fixture
def own_code(folders, tmp_path):
    """Write a causal LM whose class is in a Python file of its folder."""
    write_cycle(tmp_path)
    folder = shutil.copytree(folders["causal"][0], tmp_path / "own")
    (folder / "modeling_own.py").write_text(CODE)
    path = folder / "config.json"
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    written = json.loads(path.read_text()) | {"model_type": "own-llama", "auto_map": auto}
    path.write_text(json.dumps(written | {"architectures": ["OwnModel"]}))
    return folder


@pytest.fixture
def no_question(monkeypatch):
    """Nobody sits at the terminal."""

    def ask(*_):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.parametrize("key", ["backbone", "summarizer", "text_encoder", "item_features"])
def test_code_of_a_model_is_not_run_unasked(own_code, tmp_path, no_question, key):
    own = {
        "backbone": ("CALRec", {"backbone": str(own_code)}),
        "summarizer": ("LLMTRSR", {"summarizer": str(own_code), "max_length": 512}),
        "text_encoder": ("UniSRec", {"text_encoder": str(own_code)}),
        "item_features": ("SASRec", {"item_features": "text", "text_encoder": str(own_code)}),
    }
    model, settings = own[key]
    with pytest.raises(UserError, match="has code of its own.*set --trust_remote_code=true"):
        run_settings(settings_for(model, tmp_path, **settings))
    assert not list((tmp_path / "saved").glob("*/run.json"))


def test_code_of_a_model_is_run_where_it_is_trusted(own_code, tmp_path, no_question):
    bundle = load_folder(str(own_code), trust_remote_code=True)
    assert bundle.model.marked() == "by its own code"
    own = {"backbone": str(own_code), "max_length": 128, "trust_remote_code": True}
    run = run_settings(settings_for("CALRec", tmp_path, **own))
    record = json.loads((run.folder / "run.json").read_text())
    assert record["settings"]["trust_remote_code"] is True


CAUSES = {
    "config.json": ("config.json", "{"),
    "config.json of something else": ("config.json", '["a", "list"]'),
    "config.json of another kind of model": ("config.json", '{"model_type": "resnet"}'),
    "config.json of no model": ("config.json", "{}"),
    "tokenizer.json": ("tokenizer.json", '{"version": "1.0"}'),
    "tokenizer.json that is empty": ("tokenizer.json", ""),
    "tokenizer_config.json": ("tokenizer_config.json", "\x00"),
    "model.safetensors": ("model.safetensors", "no weights"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("kind", ["causal", "t5", "sentence"])
def test_the_damaged_file_is_named(folders, tmp_path, kind, cause):
    source, reader = folders[kind]
    folder = shutil.copytree(source, tmp_path / "copy")
    file, content = CAUSES[cause]
    (folder / file).write_text(content)
    expected = file.replace(".", r"\.")
    if "another kind" in cause:  # a config.json that is right, but of a model that is not
        expected += "|has no decoder|is no whole"
    with pytest.raises(UserError, match=expected):
        load_folder(str(folder), reader)


@pytest.mark.parametrize("kind", ["causal", "t5", "sentence"])
@pytest.mark.parametrize("own", [{"layers": 10**6}, {"width": 2**18}, {"vocab_size": 2**40}])
def test_the_configuration_of_a_far_larger_model_is_one_line(folders, tmp_path, kind, own):
    """The library would draw the missing weights until memory is full."""
    source, reader = folders[kind]
    folder = shutil.copytree(source, tmp_path / "copy")
    path = folder / "config.json"
    names = {"layers": ("num_hidden_layers", "num_layers", "n_layers")}
    names |= {"width": ("hidden_size", "d_model", "dim"), "vocab_size": ("vocab_size",)}
    written = json.loads(path.read_text())
    for key, value in own.items():
        written |= {name: value for name in names[key] if name in written}
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"config\.json is of a model of at least \d+ parameters"):
        load_folder(str(folder), reader)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_an_interruption_is_no_damaged_file(error):
    with pytest.raises(error), as_user_errors("a folder"):
        raise error


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError(), RecursionError("deep")])
def test_whatever_else_a_library_raises_is_one_line(error):
    message = "backbone 'a folder' cannot be loaded: .+"
    with pytest.raises(UserError, match=message), as_user_errors("a folder"):
        raise error


def test_a_panic_of_a_library_is_one_line():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match="cannot be loaded: no entry"), as_user_errors("a folder"):
        raise panic("no entry")


def mutations(data: bytes, count: int, seed: int, most: int | None = None):
    """Yield copies of some bytes, each with one byte changed at random."""
    rng = random.Random(seed)
    for _ in range(count):
        changed, at = bytearray(data), rng.randrange(most or len(data))
        changed[at] = rng.choice([0, 0xFF, changed[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        yield at, bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["causal", "sentence"])
def test_any_damaged_byte_is_one_line_or_loads(folders, tmp_path, kind, file):
    source, reader = folders[kind]
    folder = shutil.copytree(source, tmp_path / "copy")
    whole = (folder / file).read_bytes()
    refused = 0
    for _, changed in mutations(whole, 100, seed=len(file)):
        (folder / file).write_bytes(changed)
        refused += not loads(folder, reader)
    assert refused
    (folder / file).write_bytes(whole)
    assert loads(folder, reader)


def write_gguf(folder):
    """Write a Llama with random weights and a byte-level tokenizer into one file."""
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    from recbole_llm.language.backbones.scratch import train_tokenizer

    tokenizer = train_tokenizer(TEXTS * 4, 300)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocab), **sizes, **heads))
    folder.mkdir()
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([1] * len(vocab))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for name, value in model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        name = name.replace("model.layers.", "blk.")
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_DAMAGES = {
    "magic": lambda data: b"JUNK" + data[4:],
    "nothing": lambda data: b"",
    "version": lambda data: data[:4] + b"\x09\x00\x00\x00" + data[8:],
    "many tensors": lambda data: data[:8] + b"\xff" * 7 + b"\x00" + data[16:],
    "many pairs": lambda data: data[:16] + b"\xff" * 6 + b"\x00\x00" + data[24:],
    "a long text": lambda data: data[:24] + b"\xff" * 5 + b"\x00\x00\x00" + data[32:],
    "cut in the header": lambda data: data[:1000],
    "cut in the weights": lambda data: data[:-5000],
}


@pytest.mark.parametrize("change", GGUF_DAMAGES)
def test_a_damaged_gguf_file_is_one_line(tmp_path, change):
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "gguf")
    data = path.read_bytes()
    assert loads(path.parent, Backbone)
    path.write_bytes(GGUF_DAMAGES[change](data))
    with pytest.raises(UserError, match=r"tiny\.gguf|cannot be loaded"), no_longer_than(300):
        load_folder(str(path.parent))


def test_a_gguf_file_without_tensors_is_told_as_that(tmp_path):
    from recbole_llm.language.backbones import gguf_header

    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(UserError, match=r"m\.gguf is damaged or no GGUF file: it holds no tensors"):
        gguf_header.check_header(path)


@pytest.mark.parametrize("key", ["block_count", "feed_forward_length", "attention.head_count"])
def test_a_gguf_file_of_a_model_larger_than_itself_is_one_line(tmp_path, key):
    """A bit of a count is flipped, by which the model would be built."""
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "gguf")
    data = bytearray(path.read_bytes())
    at = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    data[at + 3] = 0x7F
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"llama.{key} is .*, and its tensors have room for"):
        load_folder(str(path.parent))


@pytest.mark.slow
def test_any_damaged_byte_of_a_gguf_header_is_one_line_or_loads(tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "gguf")
    data, refused = path.read_bytes(), 0
    begin, end = data.index(b"tokenizer.ggml.tokens"), data.index(b"tokenizer.ggml.eos")
    header = data.index(b"output_norm.weight") + 100
    for number, places in enumerate(((0, begin), (begin, end), (end, header))):
        rng = random.Random(number)
        for _ in range(80):
            changed, at = bytearray(data), rng.randrange(*places)
            changed[at] = rng.choice([0, 0xFF, changed[at] ^ 1 << rng.randrange(8)])
            path.write_bytes(changed)
            refused += not loads(path.parent, Backbone)
    assert refused > 20


def with_layers(folder, count):
    """Write a folder whose config.json declares so many layers."""
    path = folder / "config.json"
    written = json.loads(path.read_text())
    keys = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers")
    written |= {key: count for key in keys if key in written}
    if "layer_types" in written:
        written["layer_types"] = written["layer_types"][:count]
    path.write_text(json.dumps(written))
    return folder


def test_layers_that_the_configuration_does_not_count_are_refused(folders, tmp_path):
    """Otherwise, half of a model would be used in silence."""
    sources = {
        "llama": (Path(save_model("Llama", tmp_path / "llama")), Backbone),
        "gpt2": (Path(save_model("GPT2", tmp_path / "gpt2")), Backbone),
        "t5": (t5(tmp_path / "t5", TEXTS, layers=2), FusionBackbone),
        "minilm": (model_folder("minilm"), SentenceBackbone),
        "sentence": folders["sentence"],
    }
    for name, (source, reader) in sources.items():
        assert loads(source, reader), name
        folder = with_layers(shutil.copytree(source, tmp_path / f"{name}-short"), 1)
        with pytest.raises(UserError, match="weights of layers that this does not count") as error:
            load_folder(str(folder), reader)
        assert "\n" not in str(error.value)


def test_weights_beside_a_model_are_no_fault(folders, tmp_path):
    """They are heads, a decoder beside the encoder that is read, and computed buffers."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    more = {
        "causal": ["model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight"],
        "t5": ["lm_head.weight"],
        "sentence": ["embeddings.position_ids", "cls.predictions.bias", "classifier.0.weight"],
    }
    for kind, names in more.items():
        source, reader = folders[kind]
        folder = shutil.copytree(source, tmp_path / kind)
        path = folder / "model.safetensors"
        extra = {name: torch.zeros(3) for name in names}
        save_file(load_file(path) | extra, path, metadata={"format": "pt"})
        assert loads(folder, reader), kind
    assert loads(folder_of_encoder(folders["t5"][0], tmp_path / "encoder"), SentenceBackbone)
    source = folders["sentence"][0]
    folder = shutil.copytree(source, tmp_path / "masked")
    masked = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source))
    masked.save_pretrained(folder)
    prefix = f"{masked.base_model_prefix}."  # which the model without its head has not
    assert any(name.startswith(prefix) for name in load_file(folder / "model.safetensors"))
    assert loads(folder, SentenceBackbone)
    with pytest.raises(UserError, match="weights of layers that this does not count"):
        load_folder(str(with_layers(folder, 1)), SentenceBackbone)


def folder_of_encoder(source, folder):
    """Write a folder of a whole T5, of which sentence-transformers reads the encoder alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    core = Transformer(str(source))
    modules = [core, Pooling(core.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    (path,) = folder.glob("**/model.safetensors")
    shutil.copy(Path(source) / "model.safetensors", path)
    assert any(name.startswith("decoder.block.0") for name in load_file(path))
    return folder


@pytest.mark.parametrize("length", [1, 2])
def test_adapters_on_themselves_are_one_line(folders, tmp_path, length):
    names = [adapter(folders["causal"][0], tmp_path / f"lora{n}")[0] for n in range(length)]
    for number, folder in enumerate(names):
        path = folder / "adapter_config.json"
        base = {"base_model_name_or_path": str(names[(number + 1) % length])}
        path.write_text(json.dumps(json.loads(path.read_text()) | base))
    for read in (
        lambda: load_folder(str(names[0])),
        lambda: check_model_name(str(names[0]), tmp_path),
    ):
        with pytest.raises(UserError, match="its adapters lie on themselves") as error:
            read()
        assert "\n" not in str(error.value)
