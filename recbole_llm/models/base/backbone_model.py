"""What text models around a language model share: its weights, tokenizer and adapters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...language.backbones.lora import add_lora, refuse_scratch
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
from ...language.tokens.batches import HistoryEncoder, Tokens, padded_size
from ...language.vectors import embed
from ...storage import run_folders
from .text_model import TextModel
from .token_training import TokenTrainable

BORDERS = 16  # texts of a ranking that are compared with their tokens as a whole


class BackboneModel(TextModel, TokenTrainable):
    """A text model around a language model, whose weights are stored as the files of transformers, sentence-transformers or PEFT."""

    externally_saved = ("backbone.",)
    backbone_kind: type[Backbone] = Backbone
    inference_settings = ("seed", "pass_tokens", "max_length")

    @classmethod
    def check(cls, config, inputs):
        if inputs.restored:
            return
        if inputs.start:
            check_stored_weights(str(inputs.start / run_folders.BACKBONE))
            return
        check_model_name(
            config["backbone"], Path(config["checkpoint_dir"]), bool(config["trust_remote_code"])
        )
        if (
            config["adapter"] == "lora"
            and config["backbone"].startswith("scratch:")
            and not config["stage"]
        ):
            refuse_scratch(config["backbone"])

    @property
    def quantize(self) -> str:
        """Bits of frozen weights, of models that have the setting."""
        return self.config["quantize"] or "none"

    @property
    def trusted(self) -> bool:
        """Whether code that comes with a backbone may be run."""
        return bool(self.config["trust_remote_code"])

    def load_backbone(self, texts: Sequence[str]) -> None:
        """To be called by constructors: a trained run's weights (`restored`), those of `init_from` or the ones named by `backbone`.

        texts : what a scratch tokenizer is trained on.
        """
        config = self.config
        saved, name = Path(config["checkpoint_dir"]), config["backbone"]
        if self.inputs.restored:
            return self.load(self.inputs.restored)
        if self.inputs.start:
            run = self.inputs.start
            folder = str(run / run_folders.BACKBONE)
            check_stored_weights(folder)
            bundle = load_folder(folder, self.backbone_kind, self.quantize, self.trusted).merged()
        else:
            run = run_folders.backbone_run(name, saved)
            vocabulary, kind = config["scratch_vocabulary"], self.backbone_kind
            bundle = load(
                name,
                texts,
                saved=saved,
                max_length=config["max_length"],
                vocabulary=vocabulary,
                kind=kind,
                quantize=self.quantize,
                trust_remote_code=self.trusted,
            )
        self.use(bundle)
        if config["adapter"] == "lora":
            self.frozen_base = base_digest(
                adapter_chain(str(run / run_folders.BACKBONE) if run else name)
            )
            if run is not None:  # by what its folder is called beside ours, else by where it is
                name = (
                    f"run:{run.name}"
                    if run.resolve().parent == saved.resolve()
                    else str((run / run_folders.BACKBONE).resolve())
                )
            elif name in PACKAGED:
                name = f"packaged:{name}"  # peft looks for anything that may be a hub id on the hub
            elif Path(name).expanduser().is_dir():
                name = str(Path(name).expanduser().resolve())
            add_lora(
                self.backbone,
                bundle.core,
                name,
                rank=config["lora_rank"],
                alpha=config["lora_alpha"],
                dropout=config["lora_dropout"],
            )

    def use(self, bundle: Backbone) -> None:
        limit, longest = bundle.positions, self.config["max_length"]
        if limit and padded_size(longest) > limit:
            raise UserError(
                f"max_length: expected at most the {limit} positions of the backbone, found "
                f"{longest}; set --max_length"
            )
        self.bundle, self.backbone = bundle, bundle.model.to(self.device)
        self.pad_id = bundle.tokenizer.pad_token_id
        self.encoder = self.make_encoder(bundle)

    def make_encoder(self, bundle: Backbone):
        """What encodes this model's texts."""
        return HistoryEncoder(bundle.tokenizer, self.config["max_length"])

    def count_borders(self, texts: Sequence[np.ndarray]) -> None:
        """Tally the tokens, of the first texts of a ranking, that are others than in the whole text, see TextTokenizer.count_differences."""
        spelling = self.encoder.spelling
        if not spelling.splits_words:
            return
        for ids in texts[: max(0, BORDERS - self.counts["compared"])]:
            self.counts.update(
                compared=1, compared_tokens=len(ids), border_tokens=spelling.count_differences(ids)
            )

    def rates(self):
        found = super().rates()
        if tokens := self.counts["compared_tokens"]:
            found["border_tokens"] = self.counts["border_tokens"] / tokens
            if differing := self.counts["border_tokens"]:
                self.logger.info(
                    f"{differing} of {tokens} tokens in {self.counts['compared']} prompts are "
                    "others than in the whole text, since items are tokenised one by one"
                )
        return found

    def hidden(self, batch) -> torch.Tensor:
        """Last hidden states [rows, length, width]. No token of a causal model sees the padding on its right, and without a mask attention is faster."""
        return self.backbone.base_model(
            input_ids=batch.input_ids, use_cache=False
        ).last_hidden_state

    def vectors(self, tokens: Sequence[Tokens], part: int) -> np.ndarray:
        """float32 [texts, width]: mean last hidden states of the histories (part 0) or targets (1) of encoded texts, of length 1."""
        vectors = embed(
            tokens,
            lambda batch: batch.means(self.hidden(batch))[:, part],
            self.bundle,
            self.config["pass_tokens"],
            self.device,
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        self.bundle.save(folder / run_folders.BACKBONE)

    def load(self, folder: Path) -> None:
        path, kind = str(folder / run_folders.BACKBONE), self.backbone_kind
        check_stored_weights(path, first=1)  # the tensors of the first are compared one by one
        self.use(load_folder(path, kind, self.quantize, self.trusted))
