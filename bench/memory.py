"""Memory and time of language models: of published sizes by trace, and traces against processes.

    python bench/memory.py
    python bench/memory.py --models=Llama-2-7b --tokens=16384

The first table has the GiB that a training takes, by `recbole_llm.language.backbones.footprint`,
for the sizes of published models, and the million tokens an hour that devices reach by
`recbole_llm.studies.hardware`: nothing is loaded. The second has what a local summarizer takes that
continues `texts` texts of 2,048 tokens. The third, which --models leaves out, trains models of
random weights in processes of their own, and compares the peak of the device's memory with the
trace. On a CPU the peak is that of resident memory above what the process held before its second
step.
"""

from typing import Any

from common import arguments, finish, in_child, known, resident

from recbole_llm.language.backbones.scratch import SIZES as SCRATCH_SIZES
from recbole_llm.language.backbones.scratch import heads_of

LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32}


def scratch(size: str) -> dict[str, Any]:
    """The shape of a scratch: backbone over a vocabulary of 4,096 tokens."""
    width, layers = SCRATCH_SIZES[size]
    return {
        "model_type": "llama",
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_of(width),
    }


SIZES: dict[str, dict[str, Any]] = {
    "scratch:tiny": scratch("tiny"),
    "scratch:small": scratch("small"),
    "scratch:base": scratch("base"),
    "all-MiniLM-L6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    },
    "SmolLM2-135M": LLAMA
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "gemma-2-2b": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
    },
    "Llama-2-7b": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000},
    "Llama-2-13b": LLAMA
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32000,
    },
    "Llama-30b": LLAMA
    | {
        "hidden_size": 6656,
        "intermediate_size": 17920,
        "num_hidden_layers": 60,
        "num_attention_heads": 52,
        "vocab_size": 32000,
    },
    "t5-base": {
        "model_type": "t5",
        "d_model": 768,
        "d_ff": 3072,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "vocab_size": 32128,
    },
}
DEVICES = ("rtx-4090", "a100-80gb", "h100")
# rank of adapters (0: all weights are trained), quantisation
WAYS = {"LoRA": (8, "none"), "QLoRA": (8, "4bit"), "in full": (0, "none")}


def config_of(own: dict[str, Any]) -> Any:
    """A configuration of transformers."""
    from transformers import AutoConfig

    rest = {key: value for key, value in own.items() if key != "model_type"}
    return AutoConfig.for_model(own["model_type"], **rest)


def training_of(config: Any, way: str, recomputes: bool, precision: str = "bf16") -> Any:
    """How a model is trained, as a trace takes it."""
    import torch

    from recbole_llm.language.backbones.encoder_decoder import FusionBackbone
    from recbole_llm.language.backbones.footprint import Training
    from recbole_llm.language.backbones.precision import KINDS, WeightFormat
    from recbole_llm.language.backbones.sources import Backbone, SentenceBackbone

    rank, quantize = WAYS[way]
    dtype = KINDS[precision] if rank else torch.float32
    kinds: dict[str, type[Backbone]] = {"bert": SentenceBackbone, "t5": FusionBackbone}
    kind = kinds.get(config.model_type, Backbone)
    form = WeightFormat(dtype, quantize, KINDS[precision])
    return Training(kind, form, precision, rank, 0.05 if rank else 0.0, recomputes)


def traced(tokens: int, length: int, sizes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each size and way of training."""
    from recbole_llm.language.backbones.footprint import Pass, footprint

    rows = []
    for name, own in sizes.items():
        config = config_of(own)
        most = config.max_position_embeddings if config.model_type == "bert" else length
        # adapters over 4 bits are of causal LMs
        for way in WAYS if is_causal(config) else ("LoRA", "in full"):
            for recomputes in (False, True):
                work = Pass(max(1, tokens // most), most, tokens // 16)
                found = footprint(config, training_of(config, way, recomputes), work)
                rows.append(
                    {
                        "model": name,
                        "way": way,
                        "checkpoint": recomputes,
                        "tokens": tokens,
                        "weights": round(found.weights / 2**30, 2),
                        "trained": round((found.gradients + found.optimizer) / 2**30, 2),
                        "pass": round((found.activations + found.logits) / 2**30, 2),
                        "total": round(found.total / 2**30, 2),
                    }
                    | rates(config, way, recomputes, most)
                )
                print(rows[-1])
    return rows


def rates(config: Any, way: str, recomputes: bool, length: int) -> dict[str, float]:
    """The million tokens an hour that devices read and learn from, one in 16 of them learned."""
    import numpy as np

    from recbole_llm.language.backbones.precision import WeightFormat
    from recbole_llm.studies.hardware import GPUS, REACHED, ModelCost

    cost = ModelCost(shapes_of(config, WeightFormat()))
    operations = cost.training(
        np.array([length]), adapts=way != "in full", recomputes=recomputes, learned=1 / 16
    )
    tera_hour = REACHED * 3600 * 1e12  # operations in an hour of 10^12 a second
    million_tokens = tera_hour / operations / 1e6
    return {name: float(f"{GPUS[name].rate('bf16') * million_tokens:.3g}") for name in DEVICES}


def is_causal(config: Any) -> bool:
    """Whether a model is a causal LM, with an output layer."""
    return config.model_type not in ("bert", "t5")


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model, with an output layer if it is a causal LM."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if is_causal(config) else AutoModel


def shapes_of(config: Any, weight_format: Any) -> Any:
    """A model without content."""
    from recbole_llm.language.backbones.shapes import model_of_shapes

    return model_of_shapes(auto_class(config), config, weight_format)


def summarizers(texts: int, sizes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The memory of each causal LM that writes summaries, and its tokens an hour on a device."""
    import torch

    from recbole_llm.language.backbones.precision import WeightFormat
    from recbole_llm.studies.hardware import GPUS, ModelCost

    rows, length, device = [], 2048, GPUS["a100-80gb"]
    for name, own in sizes.items():
        config = config_of(own)
        if not is_causal(config):
            continue
        for quantize in ("none", "8bit", "4bit"):
            short = WeightFormat(torch.bfloat16, quantize, torch.bfloat16)
            cost = ModelCost(shapes_of(config, short))
            cache = length * cost.cache_bytes(torch.bfloat16)
            seconds = cost.writing_seconds(1e6, texts, cache, "bf16", device)
            rows.append(
                {
                    "model": name,
                    "quantize": quantize,
                    "texts": texts,
                    "weights": round(cost.weight_bytes / 2**30, 2),
                    "cache": round(texts * cache / 2**30, 2),
                    f"written, {device.name}": float(f"{3600 / seconds:.3g}"),
                }
            )
            print(rows[-1])
    return rows


def measure(args: Any) -> None:
    """Train a model of random weights for two steps, and compare the peak with the trace."""
    import torch

    from recbole_llm.language.backbones import lora
    from recbole_llm.language.backbones.footprint import Pass, footprint, pass_loss
    from recbole_llm.language.backbones.precision import autocast
    from recbole_llm.language.backbones.sources import Backbone
    from recbole_llm.storage.run_folders import peak_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    own = dict(SIZES[args.model])
    own["num_layers" if "num_layers" in own else "num_hidden_layers"] = args.layers
    if "num_decoder_layers" in own:
        own["num_decoder_layers"] = args.layers
    config = config_of(own)
    training = training_of(config, args.way, bool(args.recomputes), precision)
    with device:  # billions of random numbers take minutes on a CPU
        model = auto_class(config).from_config(config, dtype=training.weight_format.dtype)
    if training.rank:
        lora.add_lora(model, model, "", rank=8, alpha=16, dropout=training.dropout)
    bundle: Any = Backbone(model, None)  # type: ignore[arg-type]
    if training.recomputes:
        bundle.recompute()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    work = Pass(args.rows, args.length, args.rows * args.length // 16)
    before = 0.0
    for step, rows in enumerate((1, args.rows)):
        if step:
            before = resident()
            if device.type == "cuda":
                before = torch.cuda.memory_allocated() / 2**20
                torch.cuda.reset_peak_memory_stats()
        with autocast(device, precision, keeps_casts=not training.recomputes):
            loss = pass_loss(bundle, Pass(rows, work.length, work.learned), device)
        loss.backward()
        if not step:
            optimizer.step()
    found = peak_memory(device) - before
    expected = footprint(config, training, work)
    traced_mib = (expected.activations + expected.logits) / 2**20
    finish(
        model=args.model,
        way=args.way,
        checkpoint=bool(args.recomputes),
        layers=args.layers,
        tokens=args.rows * args.length,
        measured_mib=round(found),
        traced_mib=round(traced_mib),
        ratio=round(found / traced_mib, 3),
    )


def main() -> None:
    args = arguments(
        __doc__,
        tokens=2048,
        texts=16,
        models="",
        model="",
        way="",
        recomputes=0,
        layers=3,
        rows=4,
        length=512,
    )
    if args.way:
        known("way", args.way, ("LoRA", "in full"))  # random weights are not quantised
        known("model", args.model, SIZES)
        measure(args)
        return
    chosen = SIZES
    if args.small or args.models:
        names = args.models.split(",") if args.models else ["Qwen2.5-0.5B"]
        chosen = {name: SIZES[known("models", name, SIZES)] for name in names}
    rows = traced(args.tokens, min(args.tokens, 2048), chosen)
    written = summarizers(args.texts, chosen)
    measured = []
    measured_models = () if args.models else ("Qwen2.5-0.5B", "Llama-3.2-1B", "t5-base")
    for name in measured_models[: 1 if args.small else 3]:
        for way in ("LoRA", "in full"):
            for recomputes in (0, 1):
                row = in_child(__file__, model=name, way=way, recomputes=recomputes)
                row.pop("machine")
                measured.append(row)
                print(row)
    finish(bench="memory", rows=rows, summarizers=written, measured=measured)


if __name__ == "__main__":
    main()
