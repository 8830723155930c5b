"""The forecast of a training's memory equals what a training has alive."""

import copy
import itertools

import numpy as np
import pytest
import torch
from suites import fast_only
from worlds import prepared, scores_of, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones import footprint as module
from recbole_llm.language.backbones.encoder_decoder import FusionBackbone
from recbole_llm.language.backbones.footprint import (
    Pass,
    StorageCounter,
    Training,
    footprint,
)
from recbole_llm.language.backbones.precision import WeightFormat
from recbole_llm.language.backbones.shallow import layer_count, shallow_config
from recbole_llm.language.backbones.sources import Backbone, SentenceBackbone
from recbole_llm.language.tokens.batches import by_length, padded_size
from recbole_llm.models.base import training_memory

FAMILIES = ["Llama", "Qwen2", "Gemma2", "GPT2", "T5", "Bert"]
SHORT = WeightFormat(torch.bfloat16, compute=torch.bfloat16)


def config_of(family, layers=6):
    """A configuration with the proportions of a family."""
    import transformers

    width = {"hidden_size": 512, "num_hidden_layers": layers, "num_attention_heads": 8}
    own = {
        "Llama": width | {"intermediate_size": 1376, "vocab_size": 4000},
        "Qwen2": width | {"intermediate_size": 1376, "num_key_value_heads": 2, "vocab_size": 9000},
        "Gemma2": width
        | {"intermediate_size": 2048, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 9000},
        "GPT2": {"n_embd": 512, "n_layer": layers, "n_head": 8, "vocab_size": 4000},
        "T5": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8, "vocab_size": 4000}
        | {"num_layers": layers, "num_decoder_layers": layers},
        "Bert": width | {"intermediate_size": 2048, "vocab_size": 4000},
    }[family]
    return getattr(transformers, f"{family}Config")(**own)


def training_of(family, lora, recomputes, precision="bf16"):
    kind = {"T5": FusionBackbone, "Bert": SentenceBackbone}.get(family, Backbone)
    form = SHORT if lora and precision == "bf16" else WeightFormat()
    adapters = {"rank": 8, "dropout": 0.05} if lora else {}
    return Training(kind, form, precision, recomputes=recomputes, **adapters)


ALL = list(itertools.product(FAMILIES, [False, True], [False, True]))


@pytest.mark.parametrize(
    ("family", "lora", "recomputes"),
    fast_only([("Llama", False, True)], ALL),
)
def test_two_layers_tell_of_all(family, lora, recomputes):
    """The extrapolation equals the trace of every layer."""
    config, training = config_of(family), training_of(family, lora, recomputes)
    work = Pass(4, 512, learned=0 if family in ("T5", "Bert") else 700)
    found = footprint(config, training, work)
    whole = traced(config, training, work)
    assert (found.weights, found.gradients) == (whole.weights, whole.trained)
    assert found.activations + found.logits == pytest.approx(whole.peak, rel=0.05)


def traced(config, training, work):
    """The trace of every layer."""
    described = module._Config(repr(config), config)
    return module._traced(described, training, work, layer_count(config))


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("rows", [1, 8])
def test_large_vocabularies_are_not_taken_for_layers(recomputes, rows):
    """Of few layers, the gradients of embeddings are the peak; of many, the activations."""
    config, training = config_of("Qwen2", layers=12), training_of("Qwen2", False, recomputes)
    config.vocab_size, config.tie_word_embeddings = 60000, True
    work = Pass(rows, 256, learned=20)
    found = footprint(config, training, work)
    peak = traced(config, training, work).peak
    assert found.activations + found.logits == pytest.approx(peak, rel=0.05)


def test_a_trace_counts_what_torchs_own_tracker_counts():
    """MemTracker knows trained weights alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import LlamaForCausalLM

    config, training = config_of("Llama", layers=3), training_of("Llama", False, False, "fp32")
    ours = footprint(config, training, Pass(4, 256, 300))
    with FakeTensorMode():
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        tracker = MemTracker()
        tracker.track_external(model)
        bundle = Backbone(model, None)
        with tracker:
            module.pass_loss(bundle, Pass(4, 256, 300), torch.device("cpu")).backward()
        (peak,) = (sizes["Total"] for sizes in tracker.get_tracker_snapshot("peak").values())
    assert ours.total - ours.optimizer == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize(
    ("name", "own"),
    fast_only(
        [("CALRec", {})],
        [
            ("CALRec", {}),
            ("CALRec", {"checkpoint": "true"}),
            ("CALRec", {"alpha": 0, "beta": 0, "checkpoint": "true"}),
            ("TALLRec", {"max_length": 512}),
            ("TALLRec", {"max_length": 512, "loss": "prompt", "checkpoint": "true"}),
            ("ST5Seq", {}),
            ("TASTELoRA", {}),
        ],
    ),
)
def test_a_step_has_alive_what_was_forecast(name, own, tmp_path):
    """Real tensors of a real step, of our models and their own attention, are counted."""
    write_cycle(tmp_path, users=64)
    sizes = {"backbone": "scratch:tiny", "train_batch_size": 32, "pass_tokens": 10**6}
    _, model, trainer, _ = prepared(name, tmp_path, **sizes, **own)
    model.train()
    examples = list(model.examples(0)[:32])
    pieces = list(itertools.chain.from_iterable(map(model.pieces, examples)))
    trainer._step(examples)
    trainer.optimizer.zero_grad = lambda: None  # gradients are there, as in all passes but one
    with StorageCounter() as counter:
        for parameter in model.parameters():
            counter.add(parameter)
            counter.add(parameter.grad)
        before = counter.peak = counter.now
        trainer._gradients(examples)
    costs = np.array([model.cost(piece) for piece in pieces])
    passes = by_length(costs, 10**6, cost=model.pass_cost)
    tokens = [len(rows) * padded_size(costs[rows].max()) for rows in passes]
    if name == "TALLRec":  # whose rows stand in one sequence, without padding
        tokens = [costs[rows].sum() for rows in passes]
    keeps_all = getattr(model, "contrastive", False)  # and so compares all vectors of a step
    share = sum(piece.learned.sum() for piece in pieces) / costs.sum()
    forecast = training_memory.Forecast(model, int(padded_size(costs.max())), share)
    expected = sum(forecast.activations(int(sum(tokens) if keeps_all else max(tokens))))
    found = counter.peak - before
    assert found <= 1.1 * expected and forecast.bound(int(sum(tokens))) > expected
    # of several passes whose layers are computed twice, those of one are alive at a time
    assert found >= 0.9 * expected or (keeps_all and model.bundle.recomputes)


def big(tmp_path, monkeypatch, free, **own):
    """Return (model, lines) of a training on a device with some bytes of memory."""
    write_cycle(tmp_path, users=32)
    monkeypatch.setattr(training_memory, "free_memory", lambda device: free)
    ready = prepared("CALRec", tmp_path, **{"train_batch_size": 32} | own)
    ready[2]._step = lambda examples: 0.0
    return ready


@pytest.mark.parametrize(
    ("free", "recomputes", "smaller"),
    [(1e8, False, False), (4.5e6, True, True), (3e6, False, True)],
)
def test_passes_are_made_to_fit(free, recomputes, smaller, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    _, model, trainer, (train, _, _) = big(tmp_path, monkeypatch, free, pass_tokens="auto")
    asked = model.passes.tokens
    trainer.fit(train)
    assert model.bundle.recomputes == recomputes and (model.passes.tokens < asked) == smaller
    (line,) = [text for text in caplog.messages if text.startswith("memory: weights")]
    assert ("computed twice (checkpoint)" in line) == recomputes


def test_what_fits_in_no_pass_is_one_line_before_the_first_step(tmp_path, monkeypatch):
    _, _, trainer, (train, _, _) = big(tmp_path, monkeypatch, 10**5)
    with pytest.raises(
        UserError, match=r"^max_length: a pass of one text of \d+ tokens takes .*GiB|MiB.*set "
    ):
        trainer.fit(train)


def without_dropout(model):
    """Drop nothing: the masks depend on who shares a pass."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0


class Full:
    """A device whose memory ends after a number of tokens in a pass."""

    def __init__(self, model, room):
        self.inner, self.room, self.refused = model.collate, room, 0

    def __call__(self, pieces):
        batch = self.inner(pieces)
        if batch.input_ids.numel() > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return batch


@pytest.mark.parametrize(
    ("name", "room"),
    fast_only([("CALRec", 600)], [("CALRec", 600), ("TALLRec", 600), ("ST5Seq", 200)]),
)
def test_a_step_that_ran_out_of_memory_is_made_in_smaller_passes(name, room, tmp_path, caplog):
    """The losses are those of smaller passes from the beginning."""
    write_cycle(tmp_path, users=24)
    own = {"pass_tokens": 10**5, "train_batch_size": 16, "max_length": 512, "epochs": 2}
    own["eval_args.mode"] = "uni3"
    _, model, trainer, (train, _, _) = prepared(name, tmp_path, **own)
    without_dropout(model)
    model.collate = full = Full(model, room)
    trainer.fit(train)
    assert full.refused and model.passes.tokens <= room < own["pass_tokens"]
    assert "memory ran out: passes of at most" in caplog.text
    own |= {"pass_tokens": model.passes.tokens, "checkpoint_dir": str(tmp_path / "again")}
    _, other, second, (train, _, _) = prepared(name, tmp_path, **own)
    without_dropout(other)
    second.fit(train)
    for one, again in zip(trainer.history, second.history, strict=True):
        assert one["loss"] == pytest.approx(again["loss"], rel=1e-4)


def test_a_step_that_is_begun_again_draws_the_same_and_keeps_no_gradient(tmp_path):
    write_cycle(tmp_path, users=24)
    _, model, trainer, _ = prepared("CALRec", tmp_path)
    examples, inner, drawn = list(model.examples(0)[:8]), trainer._gradients, []
    expected = inner(examples)
    whole = [parameter.grad.clone() for parameter in model.parameters()]

    def gradients(chosen):
        drawn.append(torch.rand(3))
        loss = inner(chosen)
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        for parameter, gradient in zip(model.parameters(), whole, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-5)
        return loss

    trainer._gradients = gradients
    assert trainer._step(examples) == pytest.approx(expected, rel=1e-5)
    assert len(drawn) == 2 and torch.equal(*drawn)


def test_a_resumed_training_has_the_passes_of_the_stopped_one(tmp_path, monkeypatch):
    _, model, trainer, (train, _, _) = big(tmp_path, monkeypatch, 4.5e6, pass_tokens="auto")
    trainer.fit(train)
    trainer._save_state(0, train)
    _, other, second, _ = big(tmp_path, monkeypatch, 1e8, pass_tokens="auto")
    second.resume_checkpoint(trainer.folder)
    assert other.bundle.recomputes and other.passes.tokens == model.passes.tokens
    assert second.planned


def test_layers_are_computed_twice_before_a_text_alone_is_given_up(tmp_path, caplog):
    write_cycle(tmp_path, users=24)
    _, model, trainer, (train, _, _) = prepared("CALRec", tmp_path, train_batch_size=4)
    model.collate = Full(model, 0)
    with pytest.raises(UserError, match="^max_length: memory does not hold a pass of one text"):
        trainer.fit(train)
    assert model.bundle.recomputes and "are computed again in the backward pass" in caplog.text


def test_a_ranking_that_ran_out_of_memory_goes_on_in_smaller_passes(tmp_path):
    write_cycle(tmp_path, users=24)
    _, model, _, (_, _, test) = prepared("ST5Seq", tmp_path)
    model.eval()
    whole = scores_of(model, test._dataset, test._dataset.cases)
    inner, refused = model.bundle.pooled, []

    def full(batch):
        if batch.input_ids.numel() > 500:
            refused.append(batch)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return inner(batch)

    model.bundle.pooled = full
    model.item_vectors = None
    assert torch.allclose(scores_of(model, test._dataset, test._dataset.cases), whole, atol=1e-5)
    assert refused and model.passes.tokens <= 500


def test_other_faults_of_a_pass_are_not_taken_for_a_lack_of_memory(tmp_path):
    write_cycle(tmp_path, users=24)
    _, model, trainer, (train, _, _) = prepared("CALRec", tmp_path)

    def broken(pieces):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.collate = broken
    with pytest.raises(RuntimeError, match="mat1"):
        trainer.fit(train)


@pytest.mark.parametrize(
    ("name", "own"),
    fast_only(
        [("TALLRec", {"max_length": 512})],
        [
            ("TALLRec", {"max_length": 512}),
            ("CALRec", {}),
            ("CALRec", {"pass_tokens": 64}),
            ("ST5Seq", {}),
            ("RecFormer", {}),
            ("TASTELoRA", {}),
        ],
    ),
)
def test_recomputed_activations_give_equal_gradients(name, own, tmp_path):
    """Also through an attention that a rule of ours replaces, and with equal dropout."""
    write_cycle(tmp_path)
    found = {}
    for choice in ("false", "true"):
        _, model, trainer, _ = prepared(name, tmp_path, checkpoint=choice, **own)
        assert model.bundle.recomputes == (choice == "true")
        model.train()
        torch.manual_seed(0)
        with StorageCounter() as counter:
            trainer._gradients(list(model.examples(0)[:8]))
        grads = {key: value.grad for key, value in model.named_parameters()}
        found[choice] = grads, counter.peak
    for key, value in found["false"][0].items():
        other = found["true"][0][key]
        assert value is other is None or torch.equal(value, other), key


def test_shallow_configurations(tmp_path):
    for family in FAMILIES:
        config = config_of(family)
        before = copy.deepcopy(config).to_dict()
        assert layer_count(shallow_config(config, 2)) == 2
        assert layer_count(shallow_config(config, 9)) == layer_count(config) == 6
        assert config.to_dict() == before
