"""One run: settings and data in; a folder, a result row and a rank table out."""

import logging
import logging.handlers
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import config as settings_module
from . import registry, store
from .data import samples
from .errors import UserError


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    row: dict  # as in results.jsonl

    def ranks(self, part: str = "test"):
        from .evaluation.ranks import RankTable

        return RankTable.load(self.folder / store.RANKS.format(part=part))


def run_model(model: str, dataset: str, files: list[str] = (), overrides: dict | None = None) -> Run:
    """Train, evaluate and store one model; a run of the same settings and data that is there is taken as it is.

    An unfinished run of the same settings is resumed. With `stages`, each stage is a run of its own that starts
    from the one before, and the last is returned.
    """
    return run_settings(settings_module.resolve(model, dataset, files, overrides))


def run_all(planned: dict[str, list[dict]]) -> dict[str, list[Run]]:
    """Runs of resolved settings by model; a mistake in any is told before the first is trained."""
    for group in planned.values():
        Prepared(group[0] | {"stages": None}).check()  # the group differs in its seeds
    return {model: [run_settings(settings) for settings in group] for model, group in planned.items()}


def run_settings(settings: dict) -> Run:
    """`run_model` for settings that are resolved."""
    stages = settings["stages"]
    if not stages:
        return _run(settings)
    result = None
    for name in stages:
        stage = settings | {"stages": None, "stage_settings": None, "stage": name} | settings["stage_settings"][name]
        if result is not None:
            stage["init_from"] = str(result.folder)
        result = _run(stage)
    return result


def _run(settings: dict) -> Run:
    prepared = Prepared(settings)
    done = store.read_run(prepared.run_folder)
    with RunLog() as log:
        if done and done["status"] == "finished":
            return _already(log, prepared.run_folder, done)
        return prepared.train(log, resume=done is not None)


def _already(log: "RunLog", folder: Path, done: dict) -> Run:
    log.start()
    log.info(f"already there: {folder} (remove it to run again)")
    return Run(folder, done["row"])


def evaluate_run(folder: Path, settings: dict) -> Run:
    """Evaluate a finished run with other evaluation settings, or a text model on another dataset.

    The result is stored in a folder of its own below the run. Raises UserError if the weights belong to other data.
    """
    done = store.finished_run(folder)
    prepared = Prepared(settings | {"stages": None})
    target = folder / f"evaluate-{prepared.hash}"
    with RunLog() as log:
        known = store.read_run(target)
        if known:
            return _already(log, target, known)
        prepared.check()
        model, (_, _, test_data) = prepared.restore(folder, done)
        prepared.config["run_folder"] = str(target)
        log.start(target)
        trainer = prepared.make_trainer(model)
        started = time.perf_counter()
        values = prepared.evaluate(trainer, test_data, target, "test")
        row = done["row"] | {
            "run": f"{folder.name}/{target.name}", "dataset": prepared.name, "fingerprint": prepared.tables.fingerprint,
            "split": settings["eval_args"], "hash": prepared.hash, "test": values, "cases": len(test_data._dataset.cases),
            "seconds": {"test": round(time.perf_counter() - started, 2)}, "memory_mib": {"test": store.peak_memory()}, "rates": getattr(model, "rates", dict)(),
        }  # fmt: skip
        row.pop("valid", None)
        record = {"status": "finished", "settings": settings, "versions": store.versions(), "data": prepared.tables.fingerprint, "row": row}
        store.write_json(target / store.RUN, record)
        store.append_result(folder.parent, row)
        return Run(target, row)


class Prepared:
    """Settings with their data: everything up to training, and then training."""

    def __init__(self, settings: dict):
        name, folder = samples.locate(settings["dataset"], settings["data_path"])
        initial = store.find_run(settings["init_from"], Path(settings["checkpoint_dir"])) if settings["init_from"] else None
        from .data.dataset import load_tables

        self.settings, self.name = settings, name
        self.config = settings_module.recbole_config(settings | {"dataset": name, "init_from": initial and str(initial)}, folder.resolve())
        self.tables = load_tables(self.config)
        self.hash = settings_module.settings_hash(
            settings | {"init_from": initial and store.finished_run(initial)["row"]["run"]},
            data=self.tables.fingerprint, version=store.__version__,
        )  # fmt: skip
        stage = f"-{settings['stage']}" if settings.get("stage") else ""
        self.run_id = f"{settings['model']}-{name}{stage}-{self.hash}"
        self.run_folder = Path(settings["checkpoint_dir"]) / self.run_id
        self.config["run_folder"] = str(self.run_folder)

    def check(self) -> None:
        """Raise what would come up only later, after another model or an epoch has been trained. Writes nothing."""
        import numpy as np

        from .data.candidates import draw_candidates
        from .data.dataset import dataset_class
        from .data.splits import make_split
        from .data.text import ItemText

        config, tables, model = self.config, self.tables, self.config["model"]
        if model in registry.OURS:
            ItemText.from_tables(tables, config["text_fields"], config["text_words"])
        else:
            dataset_class(model, config["MODEL_TYPE"])
        args = config["eval_args"]
        split = make_split(tables, args["split"], args["part"])
        met = np.bincount(np.unique(tables.user.astype(np.int64) * len(tables.items) + tables.item) // len(tables.items))
        for cases, mode in ((split.valid, args["mode"]["valid"]), (split.test, args["mode"]["test"])):
            if mode != "full" and len(cases):  # who met most leaves least to draw from
                draw_candidates(tables, cases[[met[cases.user].argmax()]], int(mode[3:]), config["candidate_seed"], config["candidates_exclude"])

    def build(self):
        """(model, trainer, [train loader, valid loader, test loader]) with RecBole's own seeding order."""
        model, loaders = self.make_model()
        return model, self.make_trainer(model), loaders

    def restore(self, folder: Path, done: dict):
        """`make_model` with the weights of a finished run. Raises UserError if they belong to other data."""
        from .trainer import load_weights

        if self.settings["model"] not in registry.OURS and self.tables.fingerprint != done["data"]:
            raise UserError(
                f"{folder.name} was trained on {done['row']['dataset']} ({done['data']}), not on {self.name} ({self.tables.fingerprint}): "
                f"{self.settings['model']} knows items by number and cannot change data"
            )
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
        with _pretrained(config):
            return registry.model_class(config["model"])(config, loaders[0]._dataset).to(config["device"]), loaders

    def train(self, log: "RunLog", resume: bool) -> Run:
        if loud := samples.warning(self.name):
            log.info(loud)
        for line in self.tables.log:
            log.info(f"{self.name}: {line}")
        started = time.perf_counter()
        self.check()
        from .trainer import load_weights

        model, (train_data, valid_data, test_data) = self.make_model()
        if self.config["init_from"] and self.config["train_stage"] != "finetune":
            load_weights(model, Path(self.config["init_from"]))
        trainer = self.make_trainer(model)
        split = train_data._dataset.split
        log.info(
            f"{self.run_id}: {len(self.tables.users)} users, {len(self.tables.items)} items, {len(self.tables.item)} events; "
            f"cases: {len(split.train)} train, {len(split.valid)} valid, {len(split.test)} test"
        )
        log.start(self.run_folder)
        record = {"status": "running", "settings": self.settings, "versions": store.versions(), "data": self.tables.fingerprint}
        store.write_json(self.run_folder / store.RUN, record)
        if resume and (self.run_folder / "state.pt").is_file():
            trainer.resume_checkpoint(self.run_folder)
        seconds, memory = {"load": round(time.perf_counter() - started, 2)}, {"load": store.peak_memory()}
        validate = valid_data if len(split.valid) and self.settings.get("train_stage") != "pretrain" else None
        trainer.fit(train_data, validate, show_progress=self.config["show_progress"])
        load_weights(model, self.run_folder)
        memory["fit"] = store.peak_memory()
        results = {}
        for part, data in (("valid", validate), ("test", test_data)):
            if data is not None:
                began = time.perf_counter()
                results[part] = self.evaluate(trainer, data, self.run_folder, part)
                seconds[part], memory[part] = round(time.perf_counter() - began, 2), store.peak_memory()
        row = {
            "run": self.run_id, "model": self.settings["model"], "dataset": self.name, "stage": self.settings.get("stage"),
            "fingerprint": self.tables.fingerprint, "split": self.settings["eval_args"], "seed": self.settings["seed"],
            "hash": self.hash, "backbone": self.settings.get("backbone"), **results, "best_epoch": trainer.best_epoch,
            "seconds": seconds | {f"fit_{key}": round(value, 2) for key, value in trainer.seconds.items()},
            "memory_mib": memory, "device": str(self.config["device"]), "versions": record["versions"],
            "rates": getattr(model, "rates", dict)(), "cases": len(split.test),
        }  # fmt: skip
        store.write_json(self.run_folder / store.RUN, record | {"status": "finished", "row": row})
        store.append_result(self.run_folder.parent, row)
        return Run(self.run_folder, row)

    def evaluate(self, trainer, data, folder: Path, part: str) -> dict[str, float]:
        """Metrics of one part; its rank table and top-k lists go to the folder."""
        import numpy as np

        from .evaluation import metrics

        config, dataset = self.config, data._dataset
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
        if config["eval_args"]["mode"][part] == "full":
            values |= {f"bayes_{key}": value for key, value in samples.bayes_bound(self.name, tables, cases, config["topk"]).items()}
        return {key: float(value) for key, value in values.items()}


@contextmanager
def _pretrained(config):
    """S3Rec's constructor reads its pre-trained weights from a torch file: give it one for the moment."""
    if config["train_stage"] != "finetune" or config["pre_model_path"]:
        yield
        return
    if not config["init_from"]:
        raise UserError(f"{config['model']}, finetune: expected --init_from=RUN, the pre-trained run it starts from; or leave out --stages")
    import torch
    from safetensors.torch import load_file

    with TemporaryDirectory() as folder:
        path = Path(folder) / "init.pth"
        torch.save({"state_dict": load_file(Path(config["init_from"]) / "model.safetensors")}, path)
        config["pre_model_path"] = str(path)
        yield


class RunLog:
    """The root logger, which RecBole writes to, on the screen and in a run's folder.

    Lines wait until `start`, so that a mistake in the input leaves its own line alone, and no folder.
    """

    def __init__(self):
        self.logger = logging.getLogger()
        self.handlers: list[logging.Handler] = []

    def info(self, line: str) -> None:
        self.logger.info(line)

    def start(self, folder: Path | None = None) -> None:
        """Show what waits and what comes, and write it to the folder if there is one."""
        waiting = self.handlers.pop()
        self.logger.removeHandler(waiting)
        self.handlers.append(logging.StreamHandler())
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.handlers.append(logging.FileHandler(folder / "log", encoding="utf-8"))
        for handler in self.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            self.logger.addHandler(handler)
            for record in waiting.buffer:
                handler.handle(record)

    def __enter__(self):
        self.before = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.handlers = [logging.handlers.BufferingHandler(sys.maxsize)]
        self.logger.addHandler(self.handlers[0])
        return self

    def __exit__(self, kind, *error):
        if kind and not issubclass(kind, UserError) and isinstance(self.handlers[0], logging.handlers.BufferingHandler):
            self.start()
        self.logger.setLevel(self.before)
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()
