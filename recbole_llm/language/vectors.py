"""Turn texts into vectors: passes of similar length, equal texts once, stored once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..settings.layers import digest
from ..storage import content_cache, run_folders
from ..storage.progress import progress
from .backbones.precision import KINDS, WeightFormat
from .backbones.sources import Backbone, SentenceBackbone, check_model_name, errors_naming, load
from .passes import PassBudget
from .prompts.templates import TextForm
from .tokens.batches import Batch, SentenceEncoder, Tokens, pad

PASS_TOKENS = 4096  # of a frozen encoder's passes
LIBRARIES = ("torch", "transformers", "sentence-transformers")  # whose versions decide vectors

Pooled = Callable[[Batch], torch.Tensor]  # texts -> vectors, float [rows, width]


@torch.no_grad()
def embed(
    tokens: Sequence[Tokens],
    pooled: Pooled,
    bundle: Backbone,
    budget: PassBudget,
    device: torch.device | str,
    width: int | None = None,
    show_progress: bool = False,
) -> np.ndarray:
    """Embed encoded texts.

    Parameters
    ----------
    tokens : sequence of Tokens
        The texts.
    pooled : callable
        Takes a Batch and returns its vectors, float [rows, width].
    bundle : Backbone
        The model and its tokenizer.
    budget : PassBudget
        Most padded tokens of a pass.
    device : torch.device or str
        Where the model computes.
    width : int, optional
        Width of a vector; that of the backbone where None.
    show_progress : bool
        Whether a bar is drawn.

    Returns
    -------
    ndarray of float32 [texts, width]
        One vector for each text.

    Raises
    ------
    UserError
        If a vector is not finite.
    """
    vectors = np.zeros((len(tokens), width or bundle.width), dtype=np.float32)
    hidden = not show_progress
    with progress(total=len(tokens), desc="Encode texts", unit="text", disable=hidden) as bar:

        def compute(chosen: np.ndarray) -> None:
            texts = [tokens[row] for row in chosen]
            batch = pad(texts, pad_id=bundle.tokenizer.pad_token_id).to(device)
            vectors[chosen] = pooled(batch).float().cpu().numpy()
            bar.update(len(chosen))

        budget.run([len(one) for one in tokens], compute)
    if not np.isfinite(vectors).all():
        raise UserError(
            "the encoder gives vectors that are no numbers: it diverged in training, or needs "
            "precision fp32 or bf16 in place of fp16"
        )
    return vectors


def embed_cached(
    tokens: Sequence[Tokens],
    pooled: Pooled,
    bundle: Backbone,
    budget: PassBudget,
    device: torch.device | str,
    precision: str,
    saved: Path | None,
    show_progress: bool = False,
) -> np.ndarray:
    """Like `embed`, but deduplicated and cached on disk.

    Vectors are cached by the weights, the precision, the kind of device and library versions.

    Parameters
    ----------
    tokens, pooled, bundle, budget, device, show_progress
        See `embed`.
    precision : str
        `fp32`, `bf16` or `fp16`, in which `pooled` computes.
    saved : Path or None
        The folder of runs, in which the cache lies; without a cache where None.

    Returns
    -------
    ndarray of float32 [texts, width]
        One vector for each text.
    """
    names = []
    for one in tokens:
        roles = b"" if one.roles is None else one.roles.tobytes()
        names.append(content_cache.name_of(one.ids.tobytes() + roles))

    def compute(rows: np.ndarray) -> np.ndarray:
        chosen = [tokens[row] for row in rows]
        return embed(chosen, pooled, bundle, budget, device, show_progress=show_progress)

    if saved is None:
        index_of = {name: index for index, name in enumerate(names)}
        place = {name: number for number, name in enumerate(index_of)}
        vectors = compute(np.array(list(index_of.values()), dtype=np.int64))
        return vectors[[place[name] for name in names]]
    installed = run_folders.versions()
    versions = [installed[library] for library in LIBRARIES]
    key = digest([bundle.fingerprint(), precision, torch.device(device).type, versions])
    return content_cache.vectors(saved / "cache" / f"vectors-{key}", names, compute)


def frozen_vectors(name: str, texts: Sequence[str], config: Mapping[str, Any]) -> np.ndarray:
    """Embed texts by a pretrained sentence encoder, cached below `checkpoint_dir`.

    Parameters
    ----------
    name : str
        Hub id, folder, `minilm` or `run:<id>`.
    texts : sequence of str
        The texts.
    config : mapping
        The settings `checkpoint_dir`, `precision`, `trust_remote_code`, `device` and
        `show_progress`.

    Returns
    -------
    ndarray of float32 [texts, width]
        One vector for each text.

    Raises
    ------
    UserError
        For a scratch encoder, whose vectors say nothing.
    """
    saved, precision = Path(config["checkpoint_dir"]), config["precision"]
    trusted, device = bool(config["trust_remote_code"]), torch.device(config["device"])
    check_frozen(name, saved, trusted)
    with errors_naming("text_encoder"):
        bundle = load(
            name,
            (),
            saved=saved,
            max_length=0,
            kind=SentenceBackbone,
            # nothing is trained, so that the weights themselves may be short
            weight_format=WeightFormat(KINDS[precision], device=device),
            trust_remote_code=trusted,
        )
    bundle.model.to(device).eval()
    longest = min(bundle.model.max_seq_length or 512, bundle.positions or 512)
    encoder = SentenceEncoder(
        bundle.tokenizer, longest, form=TextForm(marked=False), marks=bundle.marks
    )
    return embed_cached(
        [encoder.item(text) for text in texts],
        bundle.pooled,
        bundle,
        PassBudget(PASS_TOKENS),
        device,
        precision,
        saved,
        bool(config["show_progress"]),
    )


def check_frozen(name: str, saved: Path, trust_remote_code: bool = False) -> None:
    """Refuse the name of an encoder that cannot be used frozen.

    Parameters
    ----------
    name : str
        Hub id, folder, `minilm` or `run:<id>`.
    saved : Path
        The folder of runs.
    trust_remote_code : bool
        Whether Python files of the model may be run.

    Raises
    ------
    UserError
        For a scratch encoder, and for a run or folder that does not exist.
    """
    if name.startswith("scratch:"):
        raise UserError(
            f"text_encoder: {name} has random weights and stays as it is; give minilm, a hub id, a "
            "folder or run:<id>"
        )
    with errors_naming("text_encoder"):
        check_model_name(name, saved, trust_remote_code)
