"""Settings with their data: what is checked before a run, and the run itself."""

import time
from collections.abc import Sequence
from pathlib import Path

from . import config as settings_module
from . import registry, store
from .data import mixture, samples
from .errors import UserError
from .runlog import RunLog


class Prepared:
    """Settings with their data: everything up to training, and then training."""

    def __init__(self, settings: dict):
        saved = Path(settings["checkpoint_dir"])
        store.check_writable(saved)
        initial = store.find_run(settings["init_from"], saved) if settings["init_from"] else None
        self.settings = settings
        self.name, self.config = samples.configured(settings | {"init_from": initial and str(initial)})
        from .data.dataset import load_tables  # and torch with it, now that the dataset is known to be there

        self.config["settings"] = settings
        self.tables = load_tables(self.config)
        retrieved = store.find_run(settings["rerank_from"], saved) if settings.get("rerank_from") else None
        self.config["rerank_from"] = retrieved and str(retrieved)
        named = {"init_from": initial and store.finished_run(initial)["row"]["run"]}  # runs by their id, however they were named
        if str(settings.get("backbone")).startswith("run:"):
            named["backbone"] = f"run:{store.find_run(settings['backbone'].removeprefix('run:'), saved).name}"
        if retrieved:
            named["rerank_from"] = store.finished_run(retrieved)["row"]["run"]
        if settings.get("datasets"):
            named["datasets"] = [load_tables(other).fingerprint for other in mixture.configs(self.config)]
        self.hash = settings_module.settings_hash(settings | named, data=self.tables.fingerprint, version=store.__version__)
        stage = f"-{settings['stage']}" if settings.get("stage") else ""
        self.run_id = f"{settings['model']}-{self.name}{stage}-{self.hash}"
        self.run_folder = saved / self.run_id
        self.config["run_folder"] = str(self.run_folder)

    @property
    def measure(self) -> dict:
        """What rows of one table must share."""
        keys = ["mask_history", "group_by_user"]
        mode = self.config["eval_args"]["mode"]["test"]
        keys += ["candidates_exclude", "candidate_seed"] if mode != "full" else []
        keys += ["test_users"] if self.settings["test_users"] else []
        return {"fingerprint": self.tables.fingerprint, "split": self.settings["eval_args"], "evaluation": {key: self.settings[key] for key in keys}}

    def answer_keys(self) -> set[str]:
        """Settings that may differ between training and evaluation."""
        own = getattr(registry.model_class(self.settings["model"]), "answer_keys", ())
        shared = settings_module.shared_settings(self.settings).keys() - {"seed", "MAX_ITEM_LIST_LENGTH"}
        return shared | {"dataset", "precision", "valid_metric", *own} | settings_module.NOT_IN_HASH

    def check(self, first: bool = True) -> None:
        """Raise what would come up only later, after another model or an epoch has been trained. Writes nothing.

        first : whether this is no later stage, which starts from the one before.
        """
        import numpy as np

        from .data.candidates import draw_candidates
        from .data.dataset import dataset_class
        from .data.splits import make_split
        from .data.text import ItemText
        from .evaluation.significance import same_measure

        config, tables, model = self.config, self.tables, self.config["model"]
        if first and config["train_stage"] == "finetune" and not config["init_from"]:
            raise UserError(f"{model}, finetune: expected --init_from=RUN, the pre-trained run it starts from; or leave out --stages")
        args = config["eval_args"]
        split = make_split(tables, args["split"], args["part"])
        met = np.bincount(np.unique(tables.user.astype(np.int64) * len(tables.items) + tables.item) // len(tables.items))
        if model in registry.OURS:
            ItemText.from_tables(tables, config["text_fields"], config["text_words"])
            registry.model_class(model).check(config)
        else:
            from .trainer import trainer_class

            dataset_class(model, config["MODEL_TYPE"])
            trainer_class(model, config["MODEL_TYPE"])
            label = config["LABEL_FIELD"]
            if registry.stock_models()[model] == "context_aware" and label not in tables.columns and not config["threshold"]:
                raise UserError(
                    f"{model} learns labels, and the data has no column {label}: make one by --threshold.{config['RATING_FIELD']}=4 and "
                    f"--load_col.inter='[{config['USER_ID_FIELD']}, {config['ITEM_ID_FIELD']}, {config['RATING_FIELD']}, {config['TIME_FIELD']}]'"
                )
            if (config["train_neg_sample_args"] or {}).get("distribution", "none") != "none" and met.max() == len(tables.items):
                user = tables.users[met.argmax()]
                raise UserError(f"{model} draws negatives, but user {user} has met all {len(tables.items)} items; filter users by user_inter_num_interval")
        for cases, mode in ((split.valid, args["mode"]["valid"]), (split.test, args["mode"]["test"])):
            if mode != "full" and len(cases):  # who met most leaves least to draw from
                draw_candidates(tables, cases[[met[cases.user].argmax()]], int(mode[3:]), config["candidate_seed"], config["candidates_exclude"])
        if config["rerank_from"]:
            row = store.finished_run(Path(config["rerank_from"]))["row"]
            if differs := same_measure(row, self.measure):
                raise UserError("rerank_from: {} is {} in {} and {} here; give a run over the same cases".format(*differs[:2], row["run"], differs[2]))
        self.check_unseen(self.starts(self.settings), ("test", "valid"))

    def starts(self, settings: dict) -> list[Path]:
        """The runs whose weights a run of these settings begins with."""
        backbone = str(settings.get("backbone"))
        names = [settings["init_from"], backbone.removeprefix("run:") if backbone.startswith("run:") else None]
        return [store.find_run(name, Path(self.settings["checkpoint_dir"])) for name in names if name]

    def check_unseen(self, folders: Sequence[Path], parts: Sequence[str]) -> None:
        """Raise UserError if one of these runs, or one that it started from, learned events that are targets of these parts here."""
        import pandas as pd

        from .data.dataset import load_tables
        from .data.splits import make_split

        def events(tables, rows):
            return pd.MultiIndex.from_arrays([tables.users[tables.user[rows]], tables.items[tables.item[rows]], tables.time[rows]])

        args = self.config["eval_args"]
        split = make_split(self.tables, args["split"], args["part"])
        left = list(folders)
        while left:
            folder = left.pop()
            done = store.finished_run(folder)
            stored = done["settings"]
            for learner in [stored, *(settings_module.moved(stored, name) | {"dataset": name} for name in stored.get("datasets") or [])]:
                if (learner["data_name"] or samples.SAMPLES.get(learner["dataset"], learner["dataset"])) != (self.settings["data_name"] or self.name):
                    continue
                rule = learner["eval_args"]
                if done["data"] == self.tables.fingerprint and all(rule[key] == args[key] for key in ("split", "part")):
                    continue
                old = load_tables(samples.configured(learner | {"data_path": self.settings["data_path"]})[1])
                learned = make_split(old, rule["split"], rule["part"]).train_events.nonzero()[0]
                for part in parts:
                    seen = events(self.tables, getattr(split, part).end).isin(events(old, learned))
                    if seen.any():
                        raise UserError(
                            f"{folder.name} was trained on {int(seen.sum())} of the {len(seen)} {part} targets, by the split {rule['split']}; "
                            "keep its split and filters, or train on the new one"
                        )
            left += self.starts(stored)

    def build(self):
        """(model, trainer, [train loader, valid loader, test loader]) with RecBole's own seeding order."""
        model, loaders = self.make_model()
        return model, self.make_trainer(model), loaders

    def restore(self, folder: Path, done: dict, part: str = "test"):
        """`make_model` with the weights of a finished run. Raises UserError if they belong to other data, or have seen the targets of `part`."""
        from .trainer import load_weights

        if self.settings["model"] not in registry.OURS and self.tables.fingerprint != done["data"]:
            raise UserError(
                f"{folder.name} was trained on {done['row']['dataset']} ({done['data']}), not on {self.name} ({self.tables.fingerprint}): "
                f"{self.settings['model']} knows items by number and cannot change data"
            )
        self.check_unseen([folder], (part,))
        model, loaders = self.make_model()
        load_weights(model, folder)
        return model, loaders

    def make_trainer(self, model):
        from .trainer import trainer_class

        return trainer_class(self.config["model"], self.config["MODEL_TYPE"])(self.config, model)

    def make_model(self):
        """(model, loaders) as in `build`."""
        from recbole.utils import init_seed

        from .loaders import make_loaders

        config = self.config
        init_seed(config["seed"], config["reproducibility"])
        loaders = make_loaders(config)
        init_seed(config["seed"], config["reproducibility"])
        try:
            return registry.model_class(config["model"])(config, loaders[0]._dataset).to(config["device"]), loaders
        except (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if config["model"] in registry.OURS:
                raise
            raise UserError(f"RecBole cannot build {config['model']} from these settings: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def train(self, log: RunLog) -> dict:
        """Train, evaluate and store: the run's row. A run that was interrupted is gone on with."""
        if loud := samples.warning(self.name):
            log.info(loud)
        for line in self.tables.log:
            log.info(f"{self.name}: {line}")
        started = time.perf_counter()
        self.check(first=not self.settings.get("stage") or bool(self.config["init_from"]))
        from .trainer import STATE, load_weights

        model, (train_data, valid_data, test_data) = self.make_model()
        if initial := self.config["init_from"]:
            getattr(model, "start_from", lambda folder: load_weights(model, folder))(Path(initial))
        split = train_data._dataset.split
        log.info(
            f"{self.run_id}: {len(self.tables.users)} users, {len(self.tables.items)} items, {len(self.tables.item)} events; "
            f"cases: {len(split.train)} train, {len(split.valid)} valid, {len(split.test)} test"
        )
        with store.locked(self.run_folder, log.info):
            before = store.read_run(self.run_folder)
            if before and before["status"] == "finished":  # by another process, in the meantime
                return before["row"]
            log.start(self.run_folder)
            trainer = self.make_trainer(model)
            record = {"status": "running", "settings": self.settings, "versions": store.versions(), "data": self.tables.fingerprint}
            store.write_json(self.run_folder / store.RUN, record)
            if (self.run_folder / STATE).is_file():
                trainer.resume_checkpoint(self.run_folder)
            elif before:
                log.info("this run was stopped before its first state was stored: it starts over")
            row = self._fit(trainer, model, train_data, valid_data if len(split.valid) else None, test_data, started) | {"versions": record["versions"]}
            store.write_json(self.run_folder / store.RUN, record | {"status": "finished", "row": row})
            store.append_result(self.run_folder.parent, row)
        return row

    def _fit(self, trainer, model, train_data, valid_data, test_data, started: float) -> dict:
        """Train and evaluate: the run's row."""
        from .trainer import load_weights

        seconds, memory = {"load": round(time.perf_counter() - started, 2)}, {"load": store.peak_memory()}
        if self.settings.get("train_stage") == "pretrain":
            valid_data = None
        trainer.fit(train_data, valid_data, show_progress=self.config["show_progress"])
        load_weights(model, self.run_folder)
        memory["fit"] = store.peak_memory()
        results, rates = {}, {}
        for part, data in (("valid", valid_data), ("test", test_data)):
            if data is not None:
                began = time.perf_counter()
                results[part] = self.evaluate(trainer, data, self.run_folder, part)
                rates = self.rates(model)
                seconds[part], memory[part] = round(time.perf_counter() - began, 2), store.peak_memory()
        return {
            "run": self.run_id, "model": self.settings["model"], "dataset": self.name, "stage": self.settings.get("stage"), **self.measure,
            "seed": self.settings["seed"], "hash": self.hash, "backbone": self.settings.get("backbone"), **results, "best_epoch": trainer.best_epoch,
            "seconds": seconds | {f"fit_{key}": round(value, 2) for key, value in trainer.seconds.items()},
            "memory_mib": memory, "device": str(self.config["device"]), "rates": rates, "cases": len(test_data._dataset.cases),
        }  # fmt: skip

    def rates(self, model) -> dict[str, float]:
        """What a model of ours tells of its answers in the last ranking."""
        rates = getattr(model, "rates", dict)()
        if rates.get("formatted") == 0 or rates.get("unmatched") == 1:
            model.logger.warning(f"!!! {self.run_id}: no text it wrote has the format of an item; what no item shares a word with is scored as a tie !!!")
        return rates

    def evaluate(self, trainer, data, folder: Path, part: str) -> dict[str, float]:
        """Metrics of one part; its rank table and top-k lists go to the folder."""
        import numpy as np

        from .evaluation import metrics

        config, dataset = self.config, trainer.ranked(data)
        table, top = trainer.rank(data, topk=config["topk_saved"], show_progress=config["show_progress"])
        table.save(folder / store.RANKS.format(part=part))
        np.savez_compressed(folder / store.TOP.format(part=part), items=top.items, scores=top.scores)
        tables, cases = self.tables, dataset.cases
        counts = np.bincount(tables.item[dataset.split.train_events] + 1, minlength=len(tables.items) + 1)
        values = metrics.evaluate(table, config["metrics"], config["topk"], bool(config["group_by_user"]))
        if cutoffs := [k for k in config["topk"] if k <= top.items.shape[1]]:
            values |= metrics.list_metrics(top.items + 1, counts, cutoffs)
        met = [tables.item[end] in tables.item[begin:end] for begin, end in zip(cases.begin, cases.end, strict=True)]
        values["targets_in_history"] = float(np.mean(met))
        cold = counts[tables.item[cases.end] + 1] == 0  # nothing in training told of them
        values["cold_targets"] = float(np.mean(cold))
        if cold.any():
            values |= {f"cold_{key}": value for key, value in metrics.evaluate(table.take(cold), ["Recall"], config["topk"]).items()}
        if config["eval_args"]["mode"][part] == "full" and not config["mask_history"] and not config["group_by_user"]:
            values |= {f"bayes_{key}": value for key, value in samples.bayes_bound(self.name, tables, cases, config["topk"]).items()}
        return {key: float(value) for key, value in values.items()}
