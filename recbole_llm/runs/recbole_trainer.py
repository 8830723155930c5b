"""The trainer of our models in RecBole's own code: what it trains is stored as a run."""

import json
from pathlib import Path
from typing import Any

import torch

from ..evaluation.resumable import forget, start_over
from ..settings import registry
from ..settings.run_record import check_record
from ..storage import run_folders
from ..storage.files import atomically
from ..training.loop import STATE, part_of
from ..training.text_trainer import LLMTrainer
from . import checks
from .result_row import PartRecord, ResultRow, row_of_training
from .runner import Runner, load_start
from .spec import of_model


class RecBoleTrainer(LLMTrainer):
    """Stores what `run_recbole` and RecBole's other functions train in a folder as of a run.

    Beside the files of a run, the folder holds `recbole.pth`, which RecBole's
    `load_data_and_model` reads. Its `run.json` is there when `fit` has ended, with the metrics of
    validation. Once `evaluate` has ranked test cases, it has theirs in place of them.

    Raises
    ------
    UserError
        For what our commands refuse, weights that have learned test cases among it.
    """

    def __init__(self, config: Any, model: Any):
        self.spec = of_model(registry.find(config["model"]), config, model.inputs)
        checks.check(self.spec)
        load_start(model, self.spec)
        super().__init__(config, model)
        self.parts: dict[str, PartRecord] = {}  # whose ranks are stored
        self.cases: dict[str, int] = {}
        self.is_fitted = False

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `Harness.fit`. With `saved=False` nothing is stored.

        A second call goes on from the weights that the model has, by a new optimizer.
        """
        if self.is_fitted:  # weights may have been read since, into other tensors
            self.optimizer = self._build_optimizer()
            self.parts.clear()
            start_over(self.folder)
        self.is_fitted = True
        result = super().fit(train_data, valid_data, *args, **kwargs)
        (self.folder / STATE).unlink(missing_ok=True)  # nothing goes on from it
        if self.saves:
            values: dict[str, float] = self.best_valid_result or {}
            validation: PartRecord = {
                "values": {key: float(value) for key, value in values.items()},
                "rates": {},
                "seconds": round(self.seconds["valid"], 2),
                "candidates": None,
            }
            self.cases["valid"] = len(self.ranked(valid_data).cases) if valid_data else 0
            self._write_run({"valid": validation}, "valid")
        return result

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Metric -> value of one part of the data, see `Harness.evaluate`.

        The ranks of the best weights of this trainer are stored with the run.
        """
        dataset = eval_data._dataset
        is_part = dataset.cases is dataset.split.test or dataset.cases is dataset.split.valid
        is_own = load_best_model and model_file in (None, self.saved_model_file)
        if not (is_own and is_part and (self.folder / run_folders.RUN).is_file()):
            return super().evaluate(eval_data, load_best_model, model_file, show_progress)
        self.load_best()
        part = part_of(dataset)
        self.parts[part] = Runner(self.spec).evaluate(self, eval_data, self.folder, part)
        self.cases[part] = len(self.ranked(eval_data).cases)
        row = self._write_run(self.parts, "test" if "test" in self.parts else "valid")
        forget(self.folder, part)
        run_folders.append_result(self.folder.parent, row)
        names = {metric.lower() for metric in self.config["metrics"]}
        values = self.parts[part]["values"]
        return {key: value for key, value in values.items() if key.partition("@")[0] in names}

    def _save_best(self) -> None:
        super()._save_best()
        if not self.saves:
            return
        checkpoint = {
            "config": self.config,
            "epoch": self.best_epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomically(Path(self.saved_model_file)) as path, open(path, "wb") as file:
            torch.save(checkpoint, file)

    def _write_run(self, parts: dict[str, PartRecord], part: str) -> ResultRow:
        """Write `run.json`, with the row of the cases of `part`."""
        from ..evaluation.histories import users_as_trained

        spec = self.spec
        training = {
            "best_epoch": self.best_epoch,
            "seconds": {f"fit_{key}": round(value, 2) for key, value in self.seconds.items()},
            "memory_mib": {"fit": run_folders.peak_memory(spec.config["device"])},
            "device": str(self.config["device"]),
            "cases": self.cases[part],
            "users_as_trained": users_as_trained(self.model, self.model.dataset),
            "versions": run_folders.versions(),
        }
        row = row_of_training(spec, parts, training, part)
        row["run"] = self.folder.name
        record = {
            "status": "finished",
            "settings": spec.settings,
            "versions": training["versions"],
            "data": spec.interactions.fingerprint,
            "row": row,
        }
        check_record(json.loads(json.dumps(record, default=str)))  # what cannot be read is no run
        run_folders.write_json(self.folder / run_folders.RUN, record)
        return row
