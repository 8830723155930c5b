"""The base class of models around a language model: its weights, tokenizer and adapters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...language.backbones.footprint import Pass, Training
from ...language.backbones.lora import add_lora, refuse_scratch
from ...language.backbones.precision import WeightFormat, autocast, weight_format
from ...language.backbones.sources import (
    PACKAGED,
    Backbone,
    adapter_chain,
    base_digest,
    check_model_name,
    check_stored_weights,
    load,
    load_folder,
)
from ...language.tokens.batches import Batch, HistoryEncoder, PieceTokenizer, padded_size
from ...storage import run_folders
from .text_model import TextModel
from .token_training import TokenTrainable
from .training_memory import fit_passes

BORDERS = 16  # prompts of a ranking whose pieces are compared with the tokens of the whole text


class BackboneModel(TextModel, TokenTrainable):
    """A text model around a language model.

    The weights of the language model are stored as the files of transformers, sentence-transformers
    or PEFT.

    Attributes
    ----------
    backbone_kind : type of Backbone
        The kind of language model.
    bundle : Backbone
        The language model and its tokenizer.
    backbone : Module
        The language model.
    encoder : PieceTokenizer
        Encodes the texts of this model.
    """

    externally_saved: tuple[str, ...] = ("backbone.",)
    backbone_kind: type[Backbone] = Backbone
    bundle: Backbone
    backbone: Any
    encoder: PieceTokenizer
    inference_settings: tuple[str, ...] = ("seed", "pass_tokens", "max_length")

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        if config["quantize"] not in (None, "none") and (
            config["adapter"] != "lora" or config["backbone"].startswith("scratch:")
        ):
            raise UserError(
                f"quantize: weights of {config['quantize']} are not trained; set --adapter=lora "
                "and a pretrained backbone, or quantize: none"
            )
        if inputs.restored:
            return
        if inputs.start:
            check_stored_weights(str(inputs.start / run_folders.BACKBONE))
            return
        saved, quantize = Path(config["checkpoint_dir"]), config["quantize"] or "none"
        check_model_name(config["backbone"], saved, bool(config["trust_remote_code"]), quantize)
        if (
            config["adapter"] == "lora"
            and config["backbone"].startswith("scratch:")
            and not config["stage"]
        ):
            refuse_scratch(config["backbone"])

    @property
    def weight_format(self) -> WeightFormat:
        """How the weights are held."""
        return weight_format(self.config)

    @property
    def trusted(self) -> bool:
        """Whether Python files that come with a backbone may be run."""
        return bool(self.config["trust_remote_code"])

    def load_backbone(self, texts: Sequence[str]) -> None:
        """Load the language model; every constructor calls it.

        Its weights are those of a finished run that is restored, those of the run `init_from`, or
        those that the setting `backbone` names.

        Parameters
        ----------
        texts : sequence of str
            Texts that the tokenizer of a scratch model is trained on.
        """
        config = self.config
        run: Path | None  # the run that has trained the weights
        saved, name = Path(config["checkpoint_dir"]), config["backbone"]
        if self.inputs.restored:
            return self.load(self.inputs.restored)
        if self.inputs.start:
            run = self.inputs.start
            folder = str(run / run_folders.BACKBONE)
            check_stored_weights(folder)
            bundle = load_folder(
                folder, self.backbone_kind, self.weight_format, self.trusted, merges=True
            )
        else:
            run = run_folders.backbone_run(name, saved)
            bundle = load(
                name,
                texts,
                saved=saved,
                max_length=config["max_length"],
                vocabulary=config["scratch_vocabulary"],
                kind=self.backbone_kind,
                weight_format=self.weight_format,
                trust_remote_code=self.trusted,
            )
        self.use(bundle)
        if config["adapter"] == "lora":
            base = str(run / run_folders.BACKBONE) if run else name
            if torch.device(self.device).type != "meta":
                self.frozen_base = base_digest(adapter_chain(base))
            add_lora(
                self.backbone,
                bundle.core,
                _base_name(name, run, saved),
                rank=config["lora_rank"],
                alpha=config["lora_alpha"],
                dropout=config["lora_dropout"],
            )
        return None

    def use(self, bundle: Backbone) -> None:
        """Make a language model that of this model.

        Parameters
        ----------
        bundle : Backbone
            The language model and its tokenizer.

        Raises
        ------
        UserError
            If `max_length` exceeds its positions.
        """
        limit, longest = bundle.positions, self.config["max_length"]
        if limit and padded_size(longest) > limit:
            raise UserError(
                f"max_length: expected at most the {limit} positions of the backbone, found "
                f"{longest}; set --max_length"
            )
        if self.config["checkpoint"] == "true":
            bundle.recompute()
        self.bundle, self.backbone = bundle, bundle.model.to(self.device)
        if torch.device(self.device).type == "meta":
            bundle.core.tie_weights()  # each has become a tensor of its own
        self.pad_id = bundle.tokenizer.pad_token_id
        self.encoder = self.make_encoder(bundle)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Hold the weights in main memory, so that another language model has the GPU.

        Quantised weights stay where they are: bitsandbytes does not move all of their kinds.
        """
        device = torch.device(self.device)
        moves = device.type == "cuda" and self.weight_format.quantize == "none"
        try:
            if moves:
                self.backbone.to("cpu")
                torch.cuda.empty_cache()
            yield
        finally:
            self.backbone.to(device)

    @property
    def training_form(self) -> Training:
        """How the language model is trained, as far as it decides the memory."""
        config, adapts = self.config, self.config["adapter"] == "lora"
        return Training(
            self.backbone_kind,
            self.weight_format,
            config["precision"],
            rank=config["lora_rank"] if adapts else 0,
            dropout=config["lora_dropout"] if adapts else 0.0,
            recomputes=self.bundle.recomputes,
        )

    def pass_shape(self, tokens: int, longest: int, share: float) -> Pass:
        """Return the shape of the largest pass.

        Parameters
        ----------
        tokens : int
            Most tokens of a pass.
        longest : int
            Tokens of the longest text.
        share : float
            Share of the tokens that are learned.

        Returns
        -------
        Pass
            Its rows, and their length.
        """
        return Pass(max(1, tokens // longest), longest, int(tokens * share))

    def fit_passes(self, longest, largest, pieces):
        """Choose passes that fit into memory, see `Trainable.fit_passes`."""
        tokens = sum(map(len, pieces))
        share = sum(int(piece.learned.sum()) for piece in pieces) / max(1, tokens)
        fit_passes(self, int(padded_size(longest)), largest, share)

    def recompute(self):
        """Compute activations twice, see `Trainable.recompute`."""
        bundle, allowed = self.bundle, self.config["checkpoint"] != "false"
        if bundle.recomputes or not (allowed and bundle.can_recompute):
            return False
        bundle.recompute()
        return True

    def autocast(self):
        """Return the context in which the model computes, see `TextModel.autocast`."""
        precision, recomputes = self.config["precision"], self.bundle.recomputes
        return autocast(self.device, precision, keeps_casts=not recomputes)

    def tokenise_items(self, encoder: PieceTokenizer, texts: Sequence[str]) -> None:
        """Tokenise the texts of all items at once, where there are many.

        Parameters
        ----------
        encoder : PieceTokenizer
            The encoder, which is going to read them again and again.
        texts : sequence of str
            The texts.
        """
        folder = Path(self.config["checkpoint_dir"]) / "cache" / "tokens"
        encoder.prepare(texts, folder, bool(self.config["show_progress"]))

    def make_encoder(self, bundle: Backbone) -> PieceTokenizer:
        """Make the encoder of this model's texts.

        Parameters
        ----------
        bundle : Backbone
            The language model and its tokenizer.

        Returns
        -------
        PieceTokenizer
            The encoder.
        """
        return HistoryEncoder(bundle.tokenizer, self.config["max_length"])

    def count_borders(self, texts: Sequence[np.ndarray]) -> None:
        """Tally the tokens that differ from those of the whole text.

        Texts are tokenised in pieces, and tokens can differ at the borders of pieces, see
        `TextTokenizer.count_differences`. Only the first texts of a ranking are compared.

        Parameters
        ----------
        texts : sequence of ndarray of int64
            Token ids of texts.
        """
        spelling = self.encoder.spelling
        if not spelling.splits_words:
            return
        for ids in texts[: max(0, BORDERS - self.counts["compared"])]:
            self.counts.update(
                compared=1, compared_tokens=len(ids), border_tokens=spelling.count_differences(ids)
            )

    def rates(self):
        """Return the shares of the last ranking, see `TextModel.rates`."""
        shares = super().rates()
        if tokens := self.counts["compared_tokens"]:
            shares["border_tokens"] = self.counts["border_tokens"] / tokens
            if differing := self.counts["border_tokens"]:
                self.logger.info(
                    f"{differing} of {tokens} tokens in {self.counts['compared']} prompts are "
                    "others than in the whole text, since items are tokenised one by one"
                )
        return shares

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Compute the last hidden states of a causal LM.

        There is no attention mask, because no token sees the padding on its right, and attention is
        faster without one.

        Parameters
        ----------
        batch : Batch
            Texts.

        Returns
        -------
        Tensor of float [rows, length, width]
            Hidden states; anything at padding.
        """
        return self.backbone.base_model(
            input_ids=batch.input_ids, use_cache=False
        ).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write the language model into a run's folder."""
        self.bundle.save(folder / run_folders.BACKBONE)

    def load(self, folder: Path) -> None:
        """Read the language model from a run's folder."""
        path, kind = str(folder / run_folders.BACKBONE), self.backbone_kind
        # files of base runs alone: the trainer compares the tensors of this run one by one
        check_stored_weights(path, first=1)
        self.use(load_folder(path, kind, self.weight_format, self.trusted))


def _base_name(name: str, run: Path | None, saved: Path) -> str:
    """Return the name under which stored adapters find their base again.

    Parameters
    ----------
    name : str
        The setting `backbone`.
    run : Path or None
        Folder of the run that has trained the base.
    saved : Path
        The folder of runs.

    Returns
    -------
    str
        A run's id where it is among the other runs, and its path elsewhere; `packaged:<name>` for a
        packaged model, because PEFT looks on the hub for anything that may be a hub id; the path of
        a folder; or the hub id.
    """
    if run is not None:
        if run.resolve().parent == saved.resolve():
            return f"run:{run.name}"
        return str((run / run_folders.BACKBONE).resolve())
    if name in PACKAGED:
        return f"packaged:{name}"
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name
