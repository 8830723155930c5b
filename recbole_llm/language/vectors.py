"""Texts to vectors: passes of like length, equal texts once, stored once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..settings.layers import digest
from ..storage import content_cache, run_folders
from ..storage.progress import progress
from .backbones.precision import KINDS
from .backbones.sources import Backbone, SentenceBackbone, check_model_name, errors_naming, load
from .prompts.templates import TextForm
from .tokens.batches import SentenceEncoder, Tokens, by_length, pad

PASS_TOKENS = 4096  # of a frozen encoder's passes


@torch.no_grad()
def embed(
    tokens: Sequence[Tokens],
    pooled: Callable,
    bundle: Backbone,
    budget: int,
    device,
    width: int | None = None,
    show_progress: bool = False,
) -> np.ndarray:
    """float32 [texts, width]: one vector for each encoded text.

    Parameters
    ----------
    pooled : collate.Batch -> [rows, width].
    budget : tokens of a pass.
    width : of a vector; None for that of the backbone's states.
    """
    vectors = np.zeros((len(tokens), width or bundle.width), dtype=np.float32)
    passes = by_length([len(one) for one in tokens], budget)
    for chosen in progress(passes, desc="Encode texts", disable=not show_progress):
        batch = pad([tokens[row] for row in chosen], pad_id=bundle.tokenizer.pad_token_id).to(
            device
        )
        vectors[chosen] = pooled(batch).float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise UserError(
            "the encoder gives vectors that are no numbers: it diverged in training, or needs precision fp32 or bf16 in place of fp16"
        )
    return vectors


def embed_cached(
    tokens: Sequence[Tokens],
    pooled: Callable,
    bundle: Backbone,
    budget: int,
    device,
    precision: str,
    saved: Path | None,
    show_progress: bool = False,
) -> np.ndarray:
    """`embed`, with equal texts once, and what is stored below `saved` for these weights, this precision and these libraries not at all."""
    names = [
        content_cache.name_of(
            one.ids.tobytes() + (b"" if one.roles is None else one.roles.tobytes())
        )
        for one in tokens
    ]

    def compute(rows: np.ndarray) -> np.ndarray:
        chosen = [tokens[row] for row in rows]
        return embed(chosen, pooled, bundle, budget, device, show_progress=show_progress)

    if saved is None:
        first = {name: index for index, name in enumerate(names)}
        place = {name: number for number, name in enumerate(first)}
        return compute(np.array(list(first.values()), dtype=np.int64))[
            [place[name] for name in names]
        ]
    versions = [
        run_folders.versions()[name] for name in ("torch", "transformers", "sentence-transformers")
    ]
    key = digest([bundle.fingerprint(), precision, torch.device(device).type, versions])
    return content_cache.vectors(saved / "cache" / f"vectors-{key}", names, compute)


def frozen_vectors(name: str, texts: Sequence[str], config) -> np.ndarray:
    """float32 [texts, width] of texts as a pretrained sentence encoder gives them, stored below `checkpoint_dir`.

    Parameters
    ----------
    name : hub id, folder, `minilm` or `run:<id>`.

    Raises
    ------
    UserError : for a scratch encoder, whose vectors say nothing.
    """
    saved, precision = Path(config["checkpoint_dir"]), config["precision"]
    trusted = bool(config["trust_remote_code"])
    check_frozen(name, saved, trusted)
    with errors_naming("text_encoder"):
        bundle = load(
            name,
            (),
            saved=saved,
            max_length=0,
            kind=SentenceBackbone,
            trust_remote_code=trusted,
        )
    device = torch.device(config["device"])
    bundle.model.to(
        device, KINDS[precision]
    ).eval()  # nothing is learned: the weights themselves may be short
    longest = min(bundle.model.max_seq_length or 512, bundle.positions or 512)
    encoder = SentenceEncoder(
        bundle.tokenizer, longest, form=TextForm(marked=False), marks=bundle.marks
    )
    return embed_cached(
        [encoder.item(text) for text in texts],
        bundle.pooled,
        bundle,
        PASS_TOKENS,
        device,
        precision,
        saved,
        bool(config["show_progress"]),
    )


def check_frozen(name: str, saved: Path, trust_remote_code: bool = False) -> None:
    """Raise UserError for a name that no frozen encoder can have."""
    if name.startswith("scratch:"):
        raise UserError(
            f"text_encoder: {name} has random weights and stays as it is; give minilm, a hub id, a folder or run:<id>"
        )
    with errors_naming("text_encoder"):
        check_model_name(name, saved, trust_remote_code)
