"""Settings with their data: what is checked before a run, and the run itself."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import __version__
from ..contracts.models import Scorer
from ..data.sample import locate
from ..errors import UserError
from ..settings import layers as settings_module
from ..settings import registry, run_record, stock
from ..settings.run_record import finished_run
from ..storage import run_folders
from ..storage.files import atomically
from ..storage.run_log import RunLog
from ..training import corpora


class Prepared:
    """Settings with their data: everything up to training, and then training.

    restored : the finished run whose weights are taken instead of being trained.
    """

    def __init__(self, settings: dict, restored: Path | None = None):
        saved = Path(settings["checkpoint_dir"])
        run_folders.check_writable(saved)
        initial = (
            run_folders.find_run(settings["init_from"], saved) if settings["init_from"] else None
        )
        if initial and "backbone" in settings:
            stored = run_record.finished_run(initial)["settings"]
            if "backbone" not in stored:
                raise UserError(
                    f"init_from: {initial.name} is a run of {stored['model']}, which has no "
                    "backbone; give a run of a model that has one"
                )
            settings = settings | {"backbone": stored["backbone"]}
        self.settings, self.restored = settings, restored
        self.spec = registry.find(settings["model"])
        with stock.refusals(self.spec.key, f"take these settings for {self.spec.name}"):
            self.name, self.config = locate.configured(
                settings | {"init_from": initial and str(initial)}
            )
        from ..data.recbole.datasets import (
            load_tables,  # and torch with it, now that the dataset is known to be there
        )

        self.config["settings"], self.config["restored"] = settings, restored and str(restored)
        self.tables = load_tables(self.config)
        retrieved = (
            run_folders.find_run(settings["rerank_from"], saved)
            if settings.get("rerank_from")
            else None
        )
        self.config["rerank_from"] = retrieved and str(retrieved)
        named = {
            "init_from": initial and run_record.finished_run(initial)["row"]["run"]
        }  # runs by their id, however they were named
        self.language_models = settings_module.language_models(settings)
        named |= {
            key: run_folders.model_id(model, saved) for key, model in self.language_models.items()
        }
        named |= (
            {"summarizer": "a server"} if settings_module.asks_server(settings) else {}
        )  # wherever it is
        if retrieved:
            named["rerank_from"] = run_record.finished_run(retrieved)["row"]["run"]
        if restored:
            stored = run_record.read_run(restored)
            self.joint, same = (
                stored.get("joint", []),
                stored["settings"]["dataset"] == settings["dataset"],
            )
        else:
            others, same = corpora.joint(self.config), True
            self.joint = [
                {"settings": other, "data": load_tables(locate.configured(other)[1]).fingerprint}
                for other in others
            ]
            self.config["joint"] = others
        if self.joint and same:
            read = ("text_fields", "text_words", "eval_args")
            named["datasets"] = [
                [one["data"], *(one["settings"][key] for key in read)] for one in self.joint
            ]
        if self.spec.source:  # an edited class is another model
            named["source"] = self.spec.source
        self.hash = settings_module.settings_hash(
            settings | named, data=self.tables.fingerprint, version=__version__
        )
        stage = f"-{settings['stage']}" if settings.get("stage") else ""
        self.run_id = f"{self.spec.name}-{self.name}{stage}-{self.hash}"
        self.run_folder = saved / self.run_id
        self.config["run_folder"] = str(self.run_folder)

    @property
    def measure(self) -> dict:
        """What rows of one table must share."""
        keys = ["mask_history", "group_by_user"]
        mode = self.config["eval_args"]["mode"]["test"]
        keys += ["candidates_exclude", "candidate_seed"] if mode != "full" else []
        keys += ["test_users"] if self.settings["test_users"] else []
        # where a row does not name it, it is `all`
        keys += ["history_at_test"] if self.settings["history_at_test"] == "training" else []
        return {
            "fingerprint": self.tables.fingerprint,
            "split": self.settings["eval_args"],
            "evaluation": {key: self.settings[key] for key in keys},
        }

    def check_answering(self, done: dict) -> None:
        """Raise UserError if these settings differ from those of the finished run `restored` in something that only training reads."""
        if "routes" in done:
            raise UserError(
                f"{self.restored.name} holds the adapters of many: ask it by recommend, and look "
                "at its models by compare --runs"
            )
        moved_server = (
            {"summarizer"}
            if all(map(settings_module.asks_server, (self.settings, done["settings"])))
            else set()
        )
        allowed = {*inference_settings(self.settings), *moved_server}
        if wrong := [
            key
            for key in self.settings
            if self.settings[key] != done["settings"].get(key) and key not in allowed
        ]:
            raise UserError(
                f"{', '.join(wrong)}: {self.restored.name} is trained already and takes settings "
                "of data, evaluation and answering alone"
            )

    def check(self, first: bool = True) -> None:
        """Raise what would come up only later, after another model or an epoch has been trained. Writes nothing.

        first : whether this is no later stage, which starts from the one before.
        """

        from ..data.cases.candidates import draw_candidates
        from ..data.cases.splits import make_split
        from ..data.recbole.datasets import dataset_class
        from ..data.texts.text import ItemText
        from ..evaluation.significance import same_measure
        from ..storage.readback import check_files

        config, tables, model = self.config, self.tables, self.config["model"]
        if first and config["train_stage"] == "finetune" and not config["init_from"]:
            raise UserError(
                f"{model}, finetune: expected --init_from=RUN, the pre-trained run it starts from; "
                "or leave out --stages"
            )
        if config["init_from"] and not self.restored:
            check_files(Path(config["init_from"]))
        args = config["eval_args"]
        split = make_split(tables, args["split"], args["part"])
        by_text = config["item_features"] != "id"
        if self.spec.is_text or by_text:
            ItemText.from_tables(tables, config["text_fields"], config["text_words"])
        if "text_encoder" in self.language_models:
            from ..language.vectors import check_frozen

            trusted = bool(config["trust_remote_code"])
            check_frozen(config["text_encoder"], Path(config["checkpoint_dir"]), trusted)
        if self.spec.is_text:
            self.spec.load().check(config, tables)
        else:
            from ..training.loop import trainer_class

            dataset_class(model, config["MODEL_TYPE"])
            trainer_class(model, config["MODEL_TYPE"])
            stock.check_data(config, tables)
            label = config["LABEL_FIELD"]
            if (
                self.spec.family == "context_aware"
                and label not in tables.columns
                and not config["threshold"]
            ):
                raise UserError(
                    f"{model} learns labels, and the data has no column {label}: make one by "
                    f"--threshold.{config['RATING_FIELD']}=4 and "
                    f"--load_col.inter='[{config['USER_ID_FIELD']}, {config['ITEM_ID_FIELD']}, "
                    f"{config['RATING_FIELD']}, {config['TIME_FIELD']}]'"
                )
            if (config["train_neg_sample_args"] or {}).get(
                "distribution", "none"
            ) != "none" and tables.met.max() == len(tables.items):
                user = tables.users[tables.met.argmax()]
                raise UserError(
                    f"{model} draws negatives, but user {user} has met all {len(tables.items)} "
                    "items; filter users by user_inter_num_interval"
                )
        for cases, mode in (
            (split.valid, args["mode"]["valid"]),
            (split.test, args["mode"]["test"]),
        ):
            if mode != "full" and len(cases):  # who met most leaves least to draw from
                draw_candidates(
                    tables,
                    cases[[tables.met[cases.user].argmax()]],
                    int(mode[3:]),
                    config["candidate_seed"],
                    config["candidates_exclude"],
                )
        if config["rerank_from"]:
            row = run_record.finished_run(Path(config["rerank_from"]))["row"]
            if differs := same_measure(row, self.measure):
                raise UserError(
                    "rerank_from: {} is {} in {} and {} here; give a run over the same cases".format(
                        *differs[:2], row["run"], differs[2]
                    )
                )
            self._check_lists(split)
        from .leakage import starts

        saved = Path(self.settings["checkpoint_dir"])
        self.check_unseen(starts(self.settings, saved), ("test", "valid"))
        if (
            first and self.language_models and run_record.read_run(self.run_folder) is None
        ):  # what has begun has its own
            from ..language.backbones.sources import check_reachable, errors_naming

            for key, name in self.language_models.items():
                with errors_naming(key):
                    check_reachable(name, saved)

    def _check_lists(self, split) -> None:
        """Raise UserError if the run of `rerank_from` has not stored a list for every case of a whole catalogue that is to be ranked."""
        from ..data.cases.splits import draw
        from ..evaluation.rerank_lists import StoredLists

        for part, cases in (("valid", split.valid), ("test", split.test)):
            if self.config["eval_args"]["mode"][part] == "full" and len(cases):
                cases = draw(cases, self.config[f"{part}_users"] or 0)
                StoredLists(
                    Path(self.config["rerank_from"]),
                    part,
                    finished_run(Path(self.config["rerank_from"]))["row"],
                ).of(self.tables.users[cases.user], cases.end - self.tables.start[cases.user])

    def check_unseen(self, folders: Sequence[Path], parts: Sequence[str]) -> None:
        """Raise UserError if one of these runs, one that it started from, or this run's other datasets hold targets of these parts."""
        from ..data.cases.splits import make_split
        from . import leakage

        args = self.config["eval_args"]
        others = [] if self.restored else leakage.of_run(self.run_id, self.settings, self.joint)[1:]
        leakage.refuse(
            [*leakage.of_starts(folders), *others],
            self.tables,
            make_split(self.tables, args["split"], args["part"]),
            self.settings,
            parts,
        )

    def build(self):
        """(model, trainer, [train loader, valid loader, test loader]) with RecBole's own seeding order."""
        model, loaders = self.make_model()
        return model, self.make_trainer(model), loaders

    def restore(self, done: dict, part: str = "test"):
        """`make_model` with the weights of the finished run `restored`. Raises UserError if they belong to other data, or have seen the targets of `part`."""
        from ..storage import readback
        from ..training.loop import all_tensors, load_tensors

        moves = self.spec.is_text and self.spec.load().transferable(self.settings)
        if not moves and self.tables.fingerprint != done["data"]:
            features = (
                f" with item_features {self.settings['item_features']}"
                if "item_features" in self.settings
                else ""
            )
            raise UserError(
                f"{self.restored.name} was trained on {done['row']['dataset']} ({done['data']}), "
                f"not on {self.name} ({self.tables.fingerprint}): "
                f"{self.settings['model']}{features} knows items by number and cannot change data"
            )
        self.check_unseen([self.restored], (part,))
        model, loaders = self.make_model()
        load_tensors(model, self.restored)
        readback.check(self.restored, all_tensors(model))
        return model, loaders

    def make_trainer(self, model):
        from ..training.loop import LLMTrainer, trainer_class

        if self.spec.is_text:
            return LLMTrainer(self.config, model)
        return trainer_class(self.spec.name, self.config["MODEL_TYPE"])(self.config, model)

    def make_model(self):
        """(model, loaders) as in `build`."""
        from recbole.utils import init_seed

        from ..data.recbole.loaders import make_loaders

        config = self.config
        init_seed(config["seed"], config["reproducibility"])
        with stock.refusals(
            self.spec.key, f"build {self.spec.name} and its data from these settings"
        ):
            loaders = make_loaders(config)
            init_seed(config["seed"], config["reproducibility"])
            model = self.spec.load()(config, loaders[0]._dataset).to(config["device"])
        if not self.spec.is_text and config["item_features"] != "id":
            from ..models.stock.item_text_embeddings import know_by_text

            know_by_text(model, loaders[0]._dataset, config)
        return model, loaders

    def train(self, log: RunLog, watch: Callable[[int, float], None] | None = None) -> dict:
        """Train, evaluate and store: the run's row. A run that was interrupted is gone on with.

        watch : told of each validation, with its epoch and score.
        """
        if loud := locate.warning(self.name):
            log.info(loud)
        for line in self.tables.log:
            log.info(f"{self.name}: {line}")
        started = time.perf_counter()
        self.check(first=not self.settings.get("stage") or bool(self.config["init_from"]))
        from ..evaluation.rerank_lists import unranked
        from ..evaluation.resumable import start_over
        from ..training.loop import STATE, load_tensors, stored_weights

        model, (train_data, valid_data, test_data) = self.make_model()
        if initial := self.config[
            "init_from"
        ]:  # a backbone is loaded by its model, and may be another model's
            weights = stored_weights(model)
            begun_by = run_record.finished_run(Path(initial))["settings"]["model"]
            if not weights.externally_saved or begun_by == self.settings["model"]:
                load_tensors(model, Path(initial), weights.transfer_excludes)
        split = train_data._dataset.split
        log.info(
            f"{self.run_id}: {len(self.tables.users)} users, {len(self.tables.items)} items, "
            f"{len(self.tables.item)} events; "
            f"cases: {len(split.train)} train, {len(split.valid)} valid, {len(split.test)} test"
        )
        with run_folders.locked(self.run_folder, log.info):
            if self.settings.get("overwrite"):
                run_folders.clear(self.run_folder)
            before = run_record.read_run(self.run_folder)
            trained = bool(before) and before["status"] == "finished"
            lost = unranked(self.run_folder, before["row"]) if trained else []
            if trained and not lost:  # by another process, in the meantime
                return before["row"]
            log.start(self.run_folder)
            with self._started():
                trainer = self.make_trainer(model)
                record = {
                    "status": "running",
                    "settings": self.settings,
                    "versions": self._versions(),
                    "data": self.tables.fingerprint,
                }
                record |= {"joint": self.joint, "parts": {}}
                if trained:  # it stays a finished run, whose weights others may read
                    record |= before | {
                        "versions": self._versions(),
                        "parts": self._ranked(before),
                    }
                    log.info(
                        f"the stored ranks of {' and '.join(lost)} are missing or damaged: "
                        "they are ranked again by the stored weights"
                    )
                elif not (self.run_folder / STATE).is_file() and trainer.epochs:
                    start_over(self.run_folder)
                elif before and before.get("versions", {}).get("code") == run_folders.code():
                    record["parts"] = self._ranked(before)
                if before and "summaries" in (paid := before["row"] if trained else before):
                    record["summaries"] = paid["summaries"]
                if (self.run_folder / STATE).is_file() and not trained:
                    self._note_other_code(record, before, log)
                    trainer.resume_checkpoint(self.run_folder)
                elif before and not trained:
                    log.info(
                        "this run was stopped before its first state was stored: it starts over"
                    )
                run_folders.write_json(self.run_folder / run_folders.RUN, record)
                data = {"valid": valid_data if len(split.valid) else None, "test": test_data}
                row = self._fit(trainer, model, train_data, data, started, record, watch) | {
                    "versions": record["versions"]
                }
                del record["parts"]  # the row has them
                record.pop("summaries", None)
                run_folders.write_json(
                    self.run_folder / run_folders.RUN, record | {"status": "finished", "row": row}
                )
                # nothing goes on from it any more
                (self.run_folder / STATE).unlink(missing_ok=True)
                run_folders.append_result(self.run_folder.parent, row)
        return row

    def _versions(self) -> dict[str, str]:
        """Versions of what computes, with the digest of a class of the user's own."""
        source = {"source": self.spec.source} if self.spec.source else {}
        return run_folders.versions() | source

    @staticmethod
    def _note_other_code(record: dict, before: dict | None, log: RunLog) -> None:
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

    def _ranked(self, before: dict) -> dict[str, dict]:
        """Parts of a run that today's code has ranked and whose ranks are still stored."""
        from ..evaluation.rerank_lists import unranked

        def by_this_code(record: dict) -> bool:
            return record.get("versions", {}).get("code") == run_folders.code()

        parts, row = {}, before.get("row", {})
        if before["status"] == "finished" and by_this_code(row):
            for part in ("valid", "test"):
                if part in row:
                    parts[part] = {
                        "values": row[part],
                        "rates": row["rates"],
                        "seconds": row.get("seconds", {}).get(part, 0.0),
                        "candidates": (row.get("candidates") or {}).get(part),
                    }
        if by_this_code(before):
            parts |= before.get("parts", {})
        lost = unranked(self.run_folder, parts)
        return {part: found for part, found in parts.items() if part not in lost}

    @contextmanager
    def _started(self):
        """A run that ends in a UserError leaves no folder, or one marked as failed if there is something to go on with.

        What RecBole raises before the first epoch is over is a refusal of these settings.
        """
        from ..training.loop import STATE

        folder, model = self.run_folder, self.config["model"]
        try:
            yield
        except (Exception, SystemExit) as error:
            told = error
            if not (folder / STATE).is_file():
                told = stock.refusal(self.spec.key, f"train {model} with these settings", error)
            if not isinstance(told, UserError):
                raise
            stored = (STATE, "*.kept.gz", run_folders.TEXTS, run_folders.RANKS)
            record = run_record.read_run(folder) or {}
            has_files = any(any(folder.glob(name.format(part="*", key="*"))) for name in stored)
            # Only the ranks of a finished run were lost: its weights are there as they were.
            if record.get("status") != "finished":
                if has_files or "summaries" in record:  # what was paid for stays on the bill
                    run_folders.write_json(folder / run_folders.RUN, record | {"status": "failed"})
                else:
                    shutil.rmtree(folder, ignore_errors=True)  # open files stay on some systems
            if told is error:
                raise
            raise told from error

    def _fit(
        self, trainer, model, train_data, data: dict, started: float, record: dict, watch
    ) -> dict:
        """Train and evaluate: the run's row. What a part gave is stored in `record`, and a part that it holds is not ranked again.

        The record of a finished run, whose ranks were lost, has that run's row: it is not trained again.
        """
        from ..evaluation.histories import users_as_trained
        from ..evaluation.resumable import forget

        seconds, memory = (
            {"load": round(time.perf_counter() - started, 2)},
            {"load": run_folders.peak_memory()},
        )
        if self.settings.get("train_stage") == "pretrain":
            data = data | {"valid": None}
        cases = {"train": train_data._dataset.split.train}
        cases |= {part: trainer.ranked(own).cases for part, own in data.items() if own is not None}
        try:
            self.prepare_texts(model, cases, record)
        finally:
            if "summaries" in record:
                run_folders.write_json(self.run_folder / run_folders.RUN, record)
        trained = record["status"] == "finished"
        if not trained:
            trainer.fit(
                train_data,
                data["valid"],
                show_progress=self.config["show_progress"],
                callback_fn=watch,
            )
        memory["fit"] = run_folders.peak_memory()
        trainer.optimizer = None  # twice the weights, and the gradients once more
        model.zero_grad(set_to_none=True)
        trainer.load_best()
        for part in (
            part for part in data if data[part] is not None and part not in record["parts"]
        ):
            values, spent = self.evaluate(trainer, data[part], self.run_folder, part)
            record["parts"][part] = {
                "values": values,
                "rates": self.rates(model, part),
                "seconds": spent,
                "candidates": trainer.drawn,
            }
            memory[part] = run_folders.peak_memory()
            run_folders.write_json(self.run_folder / run_folders.RUN, record)
            forget(self.run_folder, part)
        results = {part: found["values"] for part, found in record["parts"].items()}
        candidates = {part: found["candidates"] for part, found in record["parts"].items()}
        spent = {part: found["seconds"] for part, found in record["parts"].items()}
        if trained:
            row = record["row"] | results | {"candidates": candidates}
            row |= {"rates": record["parts"]["test"]["rates"]}
            return row | {"seconds": row.get("seconds", {}) | spent}
        seconds |= spent
        return {
            "run": self.run_id, "model": self.settings["model"], "dataset": self.name, "stage": self.settings.get("stage"), **self.measure,
            "seed": self.settings["seed"], "hash": self.hash, "backbone": self.settings.get("backbone"), **results, "best_epoch": trainer.best_epoch,
            "seconds": seconds | {f"fit_{key}": round(value, 2) for key, value in trainer.seconds.items()},
            "memory_mib": memory, "device": str(self.config["device"]), "rates": record["parts"]["test"]["rates"], "cases": len(data["test"]._dataset.cases),
            "candidates": candidates, "users_as_trained": users_as_trained(model, data["test"]._dataset),
        } | ({"summaries": record["summaries"]} if "summaries" in record else {})  # fmt: skip

    @staticmethod
    def prepare_texts(model, parts: dict, record: dict) -> None:
        """Let a model that has texts written for it do so for the cases of these parts.

        What they cost is added to `record["summaries"]`, where processes before this one may have
        left what they paid.
        """
        if not isinstance(model, Scorer):
            return
        before = record.get("summaries", {})
        paid = before.get("bill", {})
        try:
            model.prepare_texts(parts)
        finally:
            if costs := model.costs():
                for part, bill in costs["bill"].items():
                    for name, count in paid.get(part, {}).items():
                        bill[name] = bill.get(name, 0) + count
                record["summaries"] = {
                    "forecast": before.get("forecast", costs["forecast"]),
                    "bill": paid | costs["bill"],
                }

    def rates(self, model, part: str) -> dict[str, float]:
        """What a model of ours tells of its answers in the last ranking."""
        if not isinstance(model, Scorer):
            return {}
        rates = model.rates()
        fault = None
        if rates.get("formatted") == 0:
            fault = "no text it wrote has the format of an item"
        elif rates.get("unmatched") == 1:
            fault = model.unmatched_reason
        if fault:
            model.logger.warning(
                f"!!! {self.run_id}, {part}: {fault}; targets of cases without any named item are "
                "ranked last !!!"
            )
        return rates

    def evaluate(self, trainer, data, folder: Path, part: str) -> tuple[dict[str, float], float]:
        """Metrics of one part, and the seconds that its ranking took; its rank table and top-k lists go to the folder.

        A ranking that a killed process has left there goes on; the caller, who stores the metrics, makes it be forgotten.
        """
        import numpy as np

        from ..evaluation import metrics
        from ..evaluation.resumable import Kept

        config, dataset = self.config, trainer.ranked(data)
        kept = Kept(folder, part, trainer.model, weights=self.restored)
        table, top = trainer.rank(
            data, topk=config["topk_saved"], show_progress=config["show_progress"], kept=kept
        )
        table.save(folder / run_folders.RANKS.format(part=part))
        path = folder / run_folders.TOP.format(part=part)
        with atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, items=top.items, scores=top.scores)
        tables, cases = self.tables, dataset.cases
        counts = np.bincount(
            tables.item[dataset.split.train_events] + 1, minlength=len(tables.items) + 1
        )
        values = metrics.evaluate(
            table, config["metrics"], config["topk"], bool(config["group_by_user"])
        )
        if cutoffs := [k for k in config["topk"] if k <= top.items.shape[1]]:
            values |= metrics.list_metrics(top.items + 1, counts, cutoffs)
        met = [
            tables.item[end] in tables.item[begin:end]
            for begin, end in zip(cases.begin, cases.end, strict=True)
        ]
        values["targets_in_history"] = float(np.mean(met))
        cold = counts[tables.item[cases.end] + 1] == 0  # nothing in training told of them
        values["cold_targets"] = float(np.mean(cold))
        if cold.any():
            values |= {
                f"cold_{key}": value
                for key, value in metrics.evaluate(
                    table.take(cold), ["Recall"], config["topk"]
                ).items()
            }
        if (
            config["eval_args"]["mode"][part] == "full"
            and not config["mask_history"]
            and not config["group_by_user"]
        ):
            values |= {
                f"bayes_{key}": value
                for key, value in locate.bayes_bound(
                    self.name, tables, cases, config["topk"]
                ).items()
            }
        return {key: float(value) for key, value in values.items()}, round(kept.seconds, 2)


def moved(stored: dict, dataset: str) -> dict:
    """A run's settings for its evaluation on another dataset: that one's defaults but in what training alone reads."""
    return (
        stored
        | {
            key: value
            for key, value in settings_module.moved(stored, dataset).items()
            if key in inference_settings(stored)
        }
        | {"dataset": dataset}
    )


def inference_settings(settings: dict) -> set[str]:
    """Settings that may differ between training and evaluation."""
    spec = registry.find(settings["model"])
    own = spec.load().inference_settings if spec.is_text else ()
    shared = settings_module.shared_settings(settings).keys() - {"seed", "MAX_ITEM_LIST_LENGTH"}
    shared |= {"dataset", "precision", "valid_metric", "trust_remote_code"}
    return shared | {*own} | settings_module.NOT_IN_HASH
