"""What text models around a language model share: its weights, tokenizer and adapters."""

from collections.abc import Sequence
from pathlib import Path

from ..adapters import add_lora, refuse_scratch
from ..backbone import FOLDER, Backbone, check_name, load_causal, load_folder
from ..collate import Encoder
from ..optimizers import check as check_learner
from .base import TextModel


class BackboneModel(TextModel):
    """A text model around a causal LM, whose weights are stored as transformers' or PEFT's own files."""

    saved_apart = ("backbone.",)
    answer_keys = ("seed", "pass_tokens", "max_length")

    @classmethod
    def check(cls, config):
        check_name(config["backbone"], Path(config["checkpoint_dir"]))
        check_learner(config["learner"])
        if config["adapter"] == "lora" and config["backbone"].startswith("scratch:") and not config["init_from"] and not config["stage"]:
            refuse_scratch(config["backbone"])

    def load_backbone(self, texts: Sequence[str]) -> None:
        """To be called by constructors; texts: what a scratch tokenizer is trained on."""
        config = self.config
        saved = Path(config["checkpoint_dir"])
        self.use(load_causal(config["backbone"], texts, saved=saved, max_length=config["max_length"], vocabulary=config["scratch_vocabulary"]))
        if config["adapter"] == "lora" and not config["init_from"]:
            self._add_lora(config["backbone"])

    def use(self, bundle: Backbone) -> None:
        self.bundle, self.backbone = bundle, bundle.model.to(self.device)
        self.encoder = Encoder(bundle.tokenizer, self.config["max_length"])

    def start_from(self, folder: Path) -> None:
        """Begin to train where another run ended; its tokenizer comes with its weights."""
        self.use(load_folder(str(folder / FOLDER)).merged())
        if self.config["adapter"] == "lora":
            self._add_lora(f"run:{folder.name}")

    def _add_lora(self, base: str) -> None:
        config = self.config
        add_lora(self.backbone, base, rank=config["lora_rank"], alpha=config["lora_alpha"], dropout=config["lora_dropout"])

    def save(self, folder: Path) -> None:
        self.bundle.save(folder / FOLDER)

    def load(self, folder: Path) -> None:
        self.use(load_folder(str(folder / FOLDER)))
