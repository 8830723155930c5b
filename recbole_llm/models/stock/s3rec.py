"""RecBole's S3Rec, whose stages are runs like those of every other model."""

from recbole.model.loss import BPRLoss
from recbole.model.sequential_recommender.s3rec import S3Rec as StockS3Rec
from torch import nn

from ...errors import UserError


class S3Rec(StockS3Rec):
    """RecBole's S3Rec, whose fine-tuning starts from `init_from`.

    RecBole's constructor reads a torch file of the pretrained weights, even when a fine-tuned run
    is loaded again.
    """

    def __init__(self, config, dataset):
        if config["pre_model_path"]:
            raise UserError("pre_model_path: S3Rec starts from a run here; use --init_from=RUN")
        stage = config["train_stage"]
        config["train_stage"] = "pretrain"
        super().__init__(config, dataset)
        config["train_stage"] = self.train_stage = stage
        if stage == "finetune":
            self.loss_fct = BPRLoss() if self.loss_type == "BPR" else nn.CrossEntropyLoss()
