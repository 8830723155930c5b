"""One run: settings and data in; a folder, a result row and a rank table out."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

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


def run_settings(settings: dict) -> Run:
    """`run_model` for settings that are resolved."""
    stages = settings["stages"]
    if not stages:
        return _run(settings)
    known = settings["stage_settings"] or {}
    result = None
    for name in stages:
        if name not in known:
            raise UserError(f"stages: unknown stage {name!r}; {settings['model']} has {', '.join(known)}")
        stage = settings | {"stages": None, "stage_settings": None, "stage": name} | known[name]
        if result is not None:
            stage["init_from"] = str(result.folder)
        result = _run(stage)
    return result


def _run(settings: dict) -> Run:
    prepared = Prepared(settings)
    done = store.read_run(prepared.run_folder)
    log = RunLog(prepared.run_folder)
    with log:
        if done and done["status"] == "finished":
            log.info(f"already there: {prepared.run_folder} (remove it to run again)")
            return Run(prepared.run_folder, done["row"])
        return prepared.train(log, resume=done is not None)


def evaluate_run(folder: Path, settings: dict) -> Run:
    """Evaluate a finished run with other evaluation settings, or a text model on another dataset.

    The result is stored in a folder of its own below the run. Raises UserError if the weights belong to other data.
    """
    prepared = Prepared(settings | {"stages": None})
    done = store.read_run(folder)
    if settings["model"] not in registry.OURS and prepared.tables.fingerprint != done["data"]:
        raise UserError(
            f"{folder.name} was trained on {done['row']['dataset']} ({done['data']}), not on {prepared.name} ({prepared.tables.fingerprint}): "
            f"{settings['model']} knows items by number and cannot change data"
        )
    target = folder / f"evaluate-{prepared.hash}"
    with RunLog(target) as log:
        known = store.read_run(target)
        if known:
            log.info(f"already there: {target} (remove it to evaluate again)")
            return Run(target, known["row"])
        prepared.run_folder = target
        prepared.config["run_folder"] = str(target)
        from .trainer import load_weights

        model, trainer, (_, _, test_data) = prepared.build()
        load_weights(model, folder)
        started = time.perf_counter()
        values = prepared.evaluate(trainer, test_data, target, "test")
        row = done["row"] | {
            "run": f"{folder.name}/{target.name}", "dataset": prepared.name, "fingerprint": prepared.tables.fingerprint,
            "split": settings["eval_args"], "hash": prepared.hash, "test": values, "cases": len(test_data._dataset.cases),
            "seconds": {"test": round(time.perf_counter() - started, 2)}, "memory_mib": store.peak_memory(), "rates": getattr(model, "rates", dict)(),
        }  # fmt: skip
        row.pop("valid", None)
        store.write_json(target / store.RUN, {"status": "finished", "settings": settings, "versions": store.versions(), "data": prepared.tables.fingerprint, "row": row})
        store.append_result(folder.parent, row)
        return Run(target, row)


class Prepared:
    """Settings with their data: everything up to training, and then training."""

    def __init__(self, settings: dict):
        from .data.dataset import load_tables

        name, folder = samples.locate(settings["dataset"], settings["data_path"])
        self.settings, self.name = settings, name
        self.config = settings_module.recbole_config(settings | {"dataset": name}, folder)
        self.tables = load_tables(self.config)
        initial = store.read_run(Path(settings["init_from"])) if settings["init_from"] else None
        self.hash = settings_module.settings_hash(
            settings | {"init_from": initial["row"]["run"] if initial else settings["init_from"]},
            data=self.tables.fingerprint, version=store.__version__,
        )  # fmt: skip
        stage = f"-{settings['stage']}" if settings.get("stage") else ""
        self.run_id = f"{settings['model']}-{name}{stage}-{self.hash}"
        self.run_folder = Path(settings["checkpoint_dir"]) / self.run_id
        self.config["run_folder"] = str(self.run_folder)

    def build(self):
        """(model, trainer, [train loader, valid loader, test loader]) with RecBole's own seeding order."""
        from recbole.utils import init_seed

        from .loaders import make_loaders
        from .trainer import trainer_class

        config = self.config
        init_seed(config["seed"], config["reproducibility"])
        loaders = make_loaders(config)
        init_seed(config["seed"], config["reproducibility"])
        with _pretrained(config):
            model = registry.model_class(config["model"])(config, loaders[0]._dataset).to(config["device"])
        trainer = trainer_class(config["model"], config["MODEL_TYPE"])(config, model)
        return model, trainer, loaders

    def train(self, log: "RunLog", resume: bool) -> Run:
        if loud := samples.warning(self.name):
            log.info(loud)
        for line in self.tables.log:
            log.info(f"{self.name}: {line}")
        started = time.perf_counter()
        model, trainer, (train_data, valid_data, test_data) = self.build()
        split = train_data._dataset.split
        log.info(
            f"{self.run_id}: {len(self.tables.users)} users, {len(self.tables.items)} items, {len(self.tables.item)} events; "
            f"cases: {len(split.train)} train, {len(split.valid)} valid, {len(split.test)} test"
        )
        self.run_folder.mkdir(parents=True, exist_ok=True)
        record = {"status": "running", "settings": self.settings, "versions": store.versions(), "data": self.tables.fingerprint}
        store.write_json(self.run_folder / store.RUN, record)
        if resume and (self.run_folder / "state.pt").is_file():
            trainer.resume_checkpoint(self.run_folder)
        seconds = {"load": round(time.perf_counter() - started, 2)}
        validate = valid_data if len(split.valid) and self.settings.get("train_stage") != "pretrain" else None
        from .trainer import load_weights

        trainer.fit(train_data, validate, show_progress=self.config["show_progress"])
        load_weights(model, self.run_folder)
        results = {}
        for part, data in (("valid", validate), ("test", test_data)):
            if data is not None:
                began = time.perf_counter()
                results[part] = self.evaluate(trainer, data, self.run_folder, part)
                seconds[part] = round(time.perf_counter() - began, 2)
        row = {
            "run": self.run_id, "model": self.settings["model"], "dataset": self.name, "stage": self.settings.get("stage"),
            "fingerprint": self.tables.fingerprint, "split": self.settings["eval_args"], "seed": self.settings["seed"],
            "hash": self.hash, "backbone": self.settings.get("backbone"), **results, "best_epoch": trainer.best_epoch,
            "seconds": seconds | {f"fit_{key}": round(value, 2) for key, value in trainer.seconds.items()},
            "memory_mib": store.peak_memory(), "device": str(self.config["device"]), "versions": record["versions"],
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
        values |= metrics.list_metrics(top.items + 1, counts, config["topk"])
        met = [tables.item[end] in tables.item[begin:end] for begin, end in zip(cases.begin, cases.end, strict=True)]
        values["targets_in_history"] = float(np.mean(met))
        if config["eval_args"]["mode"][part] == "full":
            values |= {f"bayes_{key}": value for key, value in samples.bayes_bound(self.name, tables, cases, config["topk"]).items()}
        return {key: float(value) for key, value in values.items()}


class _pretrained:
    """S3Rec's constructor reads its pre-trained weights from a torch file: give it one for the moment."""

    def __init__(self, config):
        self.config, self.path = config, None

    def __enter__(self):
        if self.config["train_stage"] == "finetune" and self.config["init_from"]:
            import torch
            from safetensors.torch import load_file

            self.path = Path(self.config["run_folder"]) / "init.pth"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": load_file(Path(self.config["init_from"]) / "model.safetensors")}, self.path)
            self.config["pre_model_path"] = str(self.path)

    def __exit__(self, *error):
        if self.path:
            self.path.unlink()


class RunLog:
    """The root logger, which RecBole writes to, on the screen and in the run folder."""

    def __init__(self, folder: Path):
        self.folder, self.handlers = folder, []
        self.logger = logging.getLogger()

    def info(self, line: str) -> None:
        self.logger.info(line)

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
        self.handlers = [logging.StreamHandler(), logging.FileHandler(self.folder / "log", encoding="utf-8")]
        self.before = self.logger.level
        self.logger.setLevel(logging.INFO)
        for handler in self.handlers:
            handler.setFormatter(plain)
            self.logger.addHandler(handler)
        return self

    def __exit__(self, *error):
        self.logger.setLevel(self.before)
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()
