"""Train, evaluate and store one run."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts.models import Scorer
from ..data.sample import locate
from ..errors import UserError
from ..settings import run_record, stock
from ..storage import run_folders
from ..storage.files import atomically
from ..storage.run_log import RunLog
from . import checks
from .result_row import (
    PartRecord,
    ResultRow,
    row_of_kept,
    row_of_training,
    row_ranked_again,
)
from .spec import RunSpec

PARTS = ("valid", "test")
Watch = Callable[[int, float], None]


def load_start(model: Any, spec: RunSpec) -> None:
    """Load the weights that training begins with, if the run starts from another.

    A model loads its language model itself, which may have been trained by another model.

    Parameters
    ----------
    model : torch.nn.Module
        The model of the run.
    spec : RunSpec
        The run.
    """
    from ..training.weights import load_tensors, stored_weights

    if not spec.start:
        return
    weights = stored_weights(model)
    begun_by = run_record.finished_run(spec.start)["settings"]["model"]
    if not weights.externally_saved or begun_by == spec.settings["model"]:
        load_tensors(model, spec.start, weights.transfer_excludes)


class Runner:
    """Carries out a run.

    Parameters
    ----------
    spec : RunSpec
        The run.
    """

    def __init__(self, spec: RunSpec):
        self.spec = spec

    def make_model(self) -> tuple[Any, tuple[Any, Any, Any]]:
        """Make the untrained model and its data, in RecBole's order of seeding.

        Returns
        -------
        model : torch.nn.Module
            The model, on its device.
        loaders : tuple
            Loaders of the training, validation and test data.
        """
        from recbole.utils import init_seed

        from ..data.recbole.loaders import make_loaders
        from ..language.passes import keep_freed_memory

        spec, config = self.spec, self.spec.config
        if spec.model.is_text:
            keep_freed_memory()
        init_seed(config["seed"], config["reproducibility"])
        with stock.refusals(
            spec.model.key, f"build {spec.model.name} and its data from these settings"
        ):
            loaders = make_loaders(config, spec.model, spec.inputs)
            init_seed(config["seed"], config["reproducibility"])
            model = spec.model.load()(config, loaders[0]._dataset).to(config["device"])
        if not spec.model.is_text and spec.reads_text:
            from ..models.stock.item_text_embeddings import know_by_text

            know_by_text(model, loaders[0]._dataset, config)
        return model, loaders

    def make_trainer(self, model: Any, folder: Path | None = None) -> Any:
        """Make the trainer of a model.

        Parameters
        ----------
        model : torch.nn.Module
            As `make_model` gives it.
        folder : Path, optional
            For the trainer's files; the run's folder by default.
        """
        from ..training.loop import trainer_class
        from ..training.text_trainer import LLMTrainer

        spec = self.spec
        made: Any = LLMTrainer
        if not spec.model.is_text:
            made = trainer_class(spec.model.name, spec.config["MODEL_TYPE"])
        return made(spec.config, model, folder or spec.folder)

    def build(self) -> tuple[Any, Any, tuple[Any, Any, Any]]:
        """Make the model, its trainer, and its loaders, see `make_model`."""
        model, loaders = self.make_model()
        return model, self.make_trainer(model), loaders

    def restore(self, done: dict[str, Any], part: str = "test") -> tuple[Any, tuple[Any, Any, Any]]:
        """Make the model with the weights of the finished run `spec.restored`.

        Parameters
        ----------
        done : dict
            `run.json` of that run.
        part : str
            The cases that it is going to answer, "test" or "valid".

        Returns
        -------
        model, loaders
            As `make_model` gives them.

        Raises
        ------
        UserError
            If the weights belong to other data, or have learned the targets of `part`.
        """
        from ..storage import readback
        from ..training.weights import all_tensors, load_tensors

        run = self.spec.restored
        assert run is not None
        checks.check_same_dataset(self.spec, done)
        checks.check_unseen(self.spec, [run], (part,))
        model, loaders = self.make_model()
        load_tensors(model, run)
        readback.check(run, all_tensors(model))
        return model, loaders

    def train(self, log: RunLog, watch: Watch | None = None, is_checked: bool = False) -> ResultRow:
        """Train, evaluate and store. A run that was stopped goes on where it was.

        Parameters
        ----------
        log : RunLog
            The log of the run.
        watch : callable, optional
            Called after each validation with its epoch and score.
        is_checked : bool
            Whether `checks.check` has passed the run.

        Returns
        -------
        ResultRow
            The run's row.
        """
        spec = self.spec
        self._log_data(log)
        started = time.perf_counter()
        if not is_checked:
            checks.check(spec, first=not spec.settings.get("stage") or bool(spec.start))
        model, loaders = self.make_model()
        load_start(model, spec)
        log.info(
            f"{spec.run_id}: {len(spec.interactions.users)} users, "
            f"{len(spec.interactions.items)} items, {len(spec.interactions.item)} events; cases: "
            f"{len(spec.split.train)} train, {len(spec.split.valid)} valid, "
            f"{len(spec.split.test)} test"
        )
        with run_folders.locked(spec.folder, log.info):
            if spec.settings.get("overwrite"):
                run_folders.clear(spec.folder)
            before = run_record.read_run(spec.folder)
            if before and _is_complete(spec.folder, before):
                return ResultRow(**before["row"])  # by another process, in the meantime
            log.start(spec.folder)
            with self._failures():
                return self._train_in_folder(log, watch, model, loaders, before, started)

    def _log_data(self, log: RunLog) -> None:
        warning = locate.warning(self.spec.dataset)
        if warning:
            log.info(warning)
        for line in self.spec.interactions.log:
            log.info(f"{self.spec.dataset}: {line}")

    def _train_in_folder(
        self,
        log: RunLog,
        watch: Watch | None,
        model: Any,
        loaders: tuple[Any, Any, Any],
        before: dict[str, Any] | None,
        started: float,
    ) -> ResultRow:
        """`train`, in a folder that is locked and may hold the record of an earlier process."""
        from ..training.loop import STATE

        spec = self.spec
        trainer = self.make_trainer(model)
        record = self._new_record()
        if before and before["status"] == "finished":
            self._rank_again(record, before, log)
        else:
            self._go_on(record, before, log, trainer)
        run_folders.write_json(spec.folder / run_folders.RUN, record)
        trainer.on_kept = partial(self._record_kept, record)
        row = self._fit(trainer, model, loaders, started, record, watch)
        row["versions"] = record["versions"]
        del record["parts"]  # the row has them
        record.pop("summaries", None)
        run_folders.write_json(
            spec.folder / run_folders.RUN, record | {"status": "finished", "row": row}
        )
        # nothing goes on from it any more
        (spec.folder / STATE).unlink(missing_ok=True)
        run_folders.append_result(spec.folder.parent, row)
        return row

    def _record_kept(self, record: dict[str, Any], folder: Path, step: int) -> None:
        """Make a finished run of the weights that training has kept of a step."""
        row = row_of_kept(self.spec, folder.name, step, record["versions"])
        content = {key: value for key, value in record.items() if key not in ("parts", "summaries")}
        run_folders.write_json(
            folder / run_folders.RUN, content | {"status": "finished", "row": row}
        )

    def _new_record(self) -> dict[str, Any]:
        settings = dict(self.spec.settings)
        if settings.get("overwrite"):  # which one command asks for, and none that resumes it
            settings["overwrite"] = False
        return {
            "status": "running",
            "settings": settings,
            "versions": self._versions(),
            "data": self.spec.interactions.fingerprint,
            "joint": list(self.spec.further_datasets),
            "parts": {},
        }

    def _versions(self) -> dict[str, str]:
        """Versions of what computes, with the digest of a class of the user's own."""
        source = {"source": self.spec.model.source} if self.spec.model.source else {}
        return run_folders.versions() | source

    def _rank_again(self, record: dict[str, Any], before: dict[str, Any], log: RunLog) -> None:
        """Take over a finished run whose ranks were lost.

        It stays a finished run meanwhile, whose weights others may read.
        """
        from ..evaluation.rerank_lists import unranked

        lost = unranked(self.spec.folder, before["row"])
        versions = record["versions"]
        record |= before | {"versions": versions, "parts": self._ranked(before)}
        if "summaries" in before["row"]:
            record["summaries"] = before["row"]["summaries"]
        log.info(
            f"the stored ranks of {' and '.join(lost)} are missing or damaged: "
            "they are ranked again by the stored weights"
        )

    def _go_on(
        self, record: dict[str, Any], before: dict[str, Any] | None, log: RunLog, trainer: Any
    ) -> None:
        """Take over what an unfinished run has left, if there is one."""
        from ..evaluation.resumable import start_over
        from ..training.loop import STATE

        folder = self.spec.folder
        has_state = (folder / STATE).is_file()
        if not has_state and trainer.epochs:
            start_over(folder)
        elif before and before.get("versions", {}).get("code") == run_folders.code():
            record["parts"] = self._ranked(before)
        if before and "summaries" in before:
            record["summaries"] = before["summaries"]
        if has_state:
            _note_other_code(record, before, log)
            trainer.resume_checkpoint(folder)
        elif before:
            log.info("this run was stopped before its first state was stored: it starts over")

    def _ranked(self, before: dict[str, Any]) -> dict[str, PartRecord]:
        """Parts that today's code has ranked, and whose ranks are still stored."""
        from ..evaluation.rerank_lists import unranked

        parts: dict[str, PartRecord] = {}
        row = before.get("row", {})
        if before["status"] == "finished" and _is_by_this_code(row):
            for part in PARTS:
                if part in row:
                    parts[part] = {
                        "values": row[part],
                        "rates": row["rates"],
                        "seconds": row.get("seconds", {}).get(part, 0.0),
                        "candidates": (row.get("candidates") or {}).get(part),
                    }
        if _is_by_this_code(before):
            parts |= before.get("parts", {})
        lost = unranked(self.spec.folder, parts)
        return {part: record for part, record in parts.items() if part not in lost}

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Leave no folder of a run that ends in a UserError, or one marked as failed.

        It is marked if there is something to go on with. What RecBole raises before the first
        epoch is over is a refusal of these settings.
        """
        from ..training.loop import STATE

        spec = self.spec
        try:
            yield
        except (Exception, SystemExit) as error:
            raised: BaseException = error
            if not (spec.folder / STATE).is_file():
                raised = stock.refusal(
                    spec.model.key, f"train {spec.model.name} with these settings", error
                )
            if not isinstance(raised, UserError):
                raise
            self._mark_failed()
            if raised is error:
                raise
            raise raised from error

    def _mark_failed(self) -> None:
        from ..training.loop import STATE

        folder = self.spec.folder
        record = run_record.read_run(folder) or {}
        if record.get("status") == "finished":
            return  # only its ranks were lost: its weights are there as they were
        stored = (STATE, "*.kept.gz", run_folders.TEXTS, run_folders.RANKS)
        has_files = any(any(folder.glob(name.format(part="*", key="*"))) for name in stored)
        if has_files or "summaries" in record:  # what was paid for stays on the bill
            run_folders.write_json(folder / run_folders.RUN, record | {"status": "failed"})
        else:
            shutil.rmtree(folder, ignore_errors=True)  # open files stay on some systems

    def _fit(
        self,
        trainer: Any,
        model: Any,
        loaders: tuple[Any, Any, Any],
        started: float,
        record: dict[str, Any],
        watch: Watch | None,
    ) -> ResultRow:
        """Train and rank; the run's row.

        What a part gave is stored in `record`, and a part that it holds is not ranked again. The
        record of a finished run has that run's row: it is not trained again.
        """
        from ..evaluation.histories import users_as_trained

        spec = self.spec
        train_data, valid_data, test_data = loaders
        seconds = {"load": round(time.perf_counter() - started, 2)}
        memory = {"load": run_folders.peak_memory(spec.config["device"])}
        data = {"valid": valid_data, "test": test_data}
        if not len(spec.split.valid) or spec.settings.get("train_stage") == "pretrain":
            data["valid"] = None
        self._write_texts(trainer, model, data, record)
        trained = record["status"] == "finished"
        if not trained:
            trainer.fit(
                train_data,
                data["valid"],
                show_progress=spec.config["show_progress"],
                callback_fn=watch,
            )
        memory["fit"] = run_folders.peak_memory(spec.config["device"])
        trainer.optimizer = None  # twice the weights, and the gradients once more
        model.zero_grad(set_to_none=True)
        trainer.load_best()
        self._rank_parts(trainer, data, record, memory)
        parts = record["parts"]
        if trained:
            return row_ranked_again(record["row"], parts)
        seconds |= {part: one["seconds"] for part, one in parts.items()}
        seconds |= {f"fit_{key}": round(value, 2) for key, value in trainer.seconds.items()}
        training = {
            "best_epoch": trainer.best_epoch,
            "seconds": seconds,
            "memory_mib": memory,
            "device": str(spec.config["device"]),
            "cases": len(test_data._dataset.cases),
            "users_as_trained": users_as_trained(model, test_data._dataset),
        }
        if "summaries" in record:
            training["summaries"] = record["summaries"]
        return row_of_training(spec, parts, training)

    def _write_texts(
        self, trainer: Any, model: Any, data: dict[str, Any], record: dict[str, Any]
    ) -> None:
        """Have the texts written that the model reads, and store what they cost."""
        cases = {"train": self.spec.split.train}
        for part, loader in data.items():
            if loader is not None:
                cases[part] = trainer.ranked(loader).cases
        try:
            self.prepare_texts(model, cases, record)
        finally:
            if "summaries" in record:
                run_folders.write_json(self.spec.folder / run_folders.RUN, record)

    def _rank_parts(
        self, trainer: Any, data: dict[str, Any], record: dict[str, Any], memory: dict[str, float]
    ) -> None:
        """Rank the parts that `record` does not hold, and store each when it is done."""
        from ..evaluation.resumable import forget

        folder = self.spec.folder
        for part, loader in data.items():
            if loader is None or part in record["parts"]:
                continue
            record["parts"][part] = self.evaluate(trainer, loader, folder, part)
            memory[part] = run_folders.peak_memory(self.spec.config["device"])
            run_folders.write_json(folder / run_folders.RUN, record)
            forget(folder, part)

    @staticmethod
    def prepare_texts(model: Any, parts: dict[str, Any], record: dict[str, Any]) -> None:
        """Let a model that has texts written for it do so for the cases of these parts.

        What they cost is added to `record["summaries"]`, where processes before this one may have
        stored what they paid.

        Parameters
        ----------
        model : torch.nn.Module
            The model.
        parts : dict of str to Cases
            Part -> its cases.
        record : dict
            The run's record.
        """
        if not isinstance(model, Scorer):
            return
        before = record.get("summaries", {})
        paid = before.get("bill", {})
        try:
            model.prepare_texts(parts)
        finally:
            costs = model.costs()
            if costs:
                for part, bill in costs["bill"].items():
                    for name, count in paid.get(part, {}).items():
                        bill[name] = bill.get(name, 0) + count
                record["summaries"] = {
                    "forecast": before.get("forecast", costs["forecast"]),
                    "bill": paid | costs["bill"],
                }

    def evaluate(self, trainer: Any, data: Any, folder: Path, part: str) -> PartRecord:
        """Rank the cases of a part, and store their ranks and top-k lists.

        A ranking that a killed process has left goes on. Who calls stores the metrics, and then
        removes what was left (:func:`recbole_llm.evaluation.resumable.forget`).

        Parameters
        ----------
        trainer : Trainer
            As `make_trainer` gives it.
        data : object
            Loader of the part.
        folder : Path
            For the files.
        part : str
            "valid" or "test".
        """
        from ..evaluation.resumable import Kept

        config = self.spec.config
        progress = Kept(folder, part, trainer.model, weights=self.spec.restored)
        table, top = trainer.rank(
            data,
            topk=config["topk_saved"],
            show_progress=config["show_progress"],
            kept=progress,
        )
        table.save(folder / run_folders.RANKS.format(part=part))
        path = folder / run_folders.TOP.format(part=part)
        with atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, items=top.items, scores=top.scores)
        return {
            "values": self._metrics(table, top, trainer.ranked(data).cases, part),
            "rates": self.rates(trainer.model, part),
            "seconds": round(progress.seconds, 2),
            "candidates": trainer.drawn,
        }

    def _metrics(self, table: Any, top: Any, cases: Any, part: str) -> dict[str, float]:
        """Metric -> value: RecBole's, of the lists, of cold targets, and the bound of a sample."""
        from ..evaluation import metrics

        settings, interactions = self.spec.settings, self.spec.interactions
        cutoffs, grouped = settings["topk"], bool(settings["group_by_user"])
        values = metrics.evaluate(table, settings["metrics"], cutoffs, grouped)
        counts = np.bincount(
            interactions.item[self.spec.split.train_events] + 1,
            minlength=len(interactions.items) + 1,
        )
        stored = [k for k in cutoffs if k <= top.items.shape[1]]
        if stored:
            values |= metrics.list_metrics(top.items + 1, counts, stored)
        is_repeat = [
            interactions.item[end] in interactions.item[begin:end]
            for begin, end in zip(cases.begin, cases.end, strict=True)
        ]
        values["targets_in_history"] = float(np.mean(is_repeat))
        cold = counts[interactions.item[cases.end] + 1] == 0  # targets that training never saw
        values["cold_targets"] = float(np.mean(cold))
        if cold.any():
            of_cold = metrics.evaluate(table.take(cold), ["Recall"], cutoffs)
            values |= {f"cold_{key}": value for key, value in of_cold.items()}
        if self.spec.mode(part).is_full and not settings["mask_history"] and not grouped:
            bound = locate.bayes_bound(self.spec.dataset, interactions, cases, cutoffs)
            values |= {f"bayes_{key}": value for key, value in bound.items()}
        return {key: float(value) for key, value in values.items()}

    def rates(self, model: Any, part: str) -> dict[str, float]:
        """What a model says of its answers in the last ranking; a warning where they are useless.

        Parameters
        ----------
        model : torch.nn.Module
            The model.
        part : str
            The cases that were ranked.
        """
        if not isinstance(model, Scorer):
            return {}
        rates = model.rates()
        fault = None
        if rates.get("formatted") == 0:
            fault = "no text it wrote has the format of an item"
        elif rates.get("unmatched") == 1:
            fault = model.unmatched_reason
        if fault:
            getLogger().warning(
                f"!!! {self.spec.run_id}, {part}: {fault}; targets of cases without any named "
                "item are ranked last !!!"
            )
        return rates


def _is_complete(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a run is finished and has all of its ranks."""
    from ..evaluation.rerank_lists import unranked

    return record["status"] == "finished" and not unranked(folder, record["row"])


def _is_by_this_code(record: dict[str, Any]) -> bool:
    return bool(record.get("versions", {}).get("code") == run_folders.code())


def _note_other_code(record: dict[str, Any], before: dict[str, Any] | None, log: RunLog) -> None:
    """Say, in the log and in the row, that a training goes on that other code has begun."""
    previous, versions = (before or {}).get("versions", {}), record["versions"]
    begun_by = previous.get("trained_by") or previous.get("code", "unknown")
    if begun_by.split(", ")[-1] != versions["code"]:
        versions["trained_by"] = f"{begun_by}, {versions['code']}"
        log.info(
            f"this training was begun by other code ({begun_by}) than today's "
            f"({versions['code']}), and goes on by today's; --overwrite starts it over"
        )
    elif "trained_by" in previous:
        versions["trained_by"] = begun_by
