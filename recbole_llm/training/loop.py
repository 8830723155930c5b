"""Training: our loop, stopping rule, checkpoints and evaluation, for any trainer of RecBole."""

import json
import logging
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import trainer as stock
from recbole.utils import WandbLogger, get_trainer
from recbole.utils.enum_type import ModelType
from torch.utils.tensorboard import SummaryWriter

from ..contracts.evaluation_mode import EvaluationMode
from ..data.cases.candidates import draw_candidates, fingerprint
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation import probe as probing
from ..evaluation.loop import TopLists, rank_cases
from ..evaluation.ranks import RankTable
from ..evaluation.resumable import Kept
from ..storage import readback, run_folders
from ..storage.files import atomically, naming
from ..storage.run_folders import WEIGHTS
from .weights import (
    all_tensors,
    load_weights,
    other_tensors,
    overwrite_trained,
    resumable_tensors,
    save_weights,
    stored_weights,
    trained_tensors,
)

STATE = "state.pt"
TENSORBOARD = "tensorboard"
# in RecBole's own form, of a training that RecBole's code began
CHECKPOINT = "recbole.pth"
# what state.pt holds beside tensors and random generators
STATE_KINDS: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "position": tuple,
    "cur_step": int,
    "best_epoch": int,
    "best_valid_score": float,
    "best_valid_result": (dict, type(None)),
    "model": dict,
    "other": dict,
    "seconds": dict,
    "history": list,
    "further": dict,
}

Position = tuple[int, float, int]  # in an epoch: steps made, sum of losses, number of examples
EPOCH_START: Position = (0, 0.0, 0)


class FolderTrainer(stock.Trainer):
    """RecBole's trainer, with all of its files in the folder of one run.

    RecBole's constructor opens tensorboard's file below the working folder, and builds a collector
    and an evaluator that our evaluation replaces. This class stands behind every trainer of
    RecBole in the order of inheritance, so that theirs call this constructor in place of that one.
    """

    folder: Path

    @cached_property
    def tensorboard(self) -> SummaryWriter:
        """The curves of training; the file is made when something is written."""
        with naming(self.folder / TENSORBOARD):
            return SummaryWriter(self.folder / TENSORBOARD)

    def __init__(self, config: Any, model: Any):
        stock.AbstractTrainer.__init__(self, config, model)
        self.logger = stock.getLogger()
        self.wandblogger = WandbLogger(config)
        for key in ("learner", "learning_rate", "epochs", "stopping_step", "clip_grad_norm"):
            setattr(self, key, config[key])
        for key in ("valid_metric_bigger", "device", "checkpoint_dir", "enable_amp"):
            setattr(self, key, config[key])
        self.weight_decay, self.eval_type = config["weight_decay"], config["eval_type"]
        self.eval_step = min(config["eval_step"], self.epochs)
        self.valid_metric = config["valid_metric"].lower()
        self.test_batch_size = config["eval_batch_size"]
        self.gpu_available = torch.cuda.is_available() and config["use_gpu"]
        self.enable_scaler = torch.cuda.is_available() and config["enable_scaler"]
        self.saved_model_file = str(self.folder / CHECKPOINT)
        self.start_epoch = self.cur_step = 0
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None
        self.train_loss_dict: dict[int, float] = {}
        self.optimizer = self._build_optimizer()
        self.item_tensor = self.tot_item_num = None


class Harness(FolderTrainer):
    """Mixin over a RecBole trainer, which keeps its `_train_epoch` and `_build_optimizer`.

    Files in `folder`: model.safetensors holds the best weights so far, and readback.json what they
    are compared with when they are read. state.pt holds the latest weights, the optimizer, the
    random generators and the counters, so that a resumed run equals an uninterrupted one.

    Parameters
    ----------
    config : Config
        The settings.
    model : AbstractRecommender
        The model.

    Attributes
    ----------
    folder : Path
        Folder of the run.
    seconds : dict of str to float
        Seconds of training and of validation.
    best_epoch : int
        Number of the epoch with the best validation score; -1 before there is one.
    history : list of dict
        One entry for each epoch: its loss, seconds and validation score.
    position : tuple of (int, float, int)
        Where a resumed run begins in its first epoch: steps made, sum of losses, examples.
    drawn : str or None
        Fingerprint of the candidates of the last ranking.
    probed : Dataset or None
        The dataset with the validation cases whose scores are compared after weights are read.
    on_kept : callable or None
        (folder, step) -> None; called when `keep` has stored weights.
    repeats : bool or None
        Whether the model gives a case the same scores each time; None before that is known.
    """

    config: Config
    model: AbstractRecommender
    device: torch.device
    logger: logging.Logger
    cur_step: int
    best_valid_score: float
    history: list[dict]
    position: Position
    drawn: str | None
    repeats: bool | None

    def __init__(self, config: Any, model: Any, folder: Path | None = None):
        self.folder = folder or _new_folder(Path(config["checkpoint_dir"]), config["model"])
        check_kinds(self.folder)
        super().__init__(config, model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds = {"train": 0.0, "valid": 0.0}
        self.best_epoch = -1
        self.history = []
        self.position = EPOCH_START
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.drawn = None
        self.probed = None
        self.valid_data: Any = None
        self.callback: Callable[[int, float], None] | None = None
        self.repeats = None
        self.saves = True
        self.on_kept: Callable[[Path, int], None] | None = None

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train for `epochs`, or until validation has stopped improving.

        Only a strictly better score is an improvement, and scores are not rounded.

        Parameters
        ----------
        train_data, valid_data : DataLoader
            The training and validation parts; there is no validation where the latter is None.
        verbose : bool
            Whether each epoch is logged.
        saved : bool
            Not used: the best weights are always saved.
        show_progress : bool
            Whether bars are drawn.
        callback_fn : callable, optional
            Called with the epoch and its score after each validation.

        Returns
        -------
        tuple of (float, dict)
            The best validation score and its metrics, as RecBole's trainers return them.
        """
        self.saves = saved
        if not saved:
            with suppress(OSError):  # what a folder holds already stays there
                self.folder.rmdir()
        self.probed = self.ranked(valid_data) if valid_data else None
        self._restore_generators(train_data)
        if (self.config["train_neg_sample_args"] or {}).get("dynamic"):
            train_data.get_model(self.model)
        if self.epochs == 0:
            self._save_best()
        validates = bool(valid_data) and self.eval_step > 0
        self.valid_data = valid_data if validates else None
        self.callback = callback_fn
        for epoch in range(self.start_epoch, self.epochs):
            # a trainer may lower the number of epochs on the way
            if self.cur_step > self.stopping_step or epoch >= self.epochs:
                break
            line = self._train_and_time(train_data, epoch, show_progress)
            if validates and self._validation_is_due(epoch):
                line |= self._validate(valid_data, epoch, show_progress)
            elif not validates:
                self._save_best()
                self.best_epoch = epoch
            self.history.append(line)
            if verbose:
                self.logger.info(epoch_line(line, self.best_epoch == epoch))
            self._save_state(epoch, train_data)
        return self.best_valid_score, self.best_valid_result

    def _train_and_time(self, train_data, epoch: int, show_progress: bool) -> dict:
        """Train for an epoch, and return its entry of `history`."""
        started, validated = time.perf_counter(), self.seconds["valid"]
        loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
        loss = float(sum(loss) if isinstance(loss, tuple) else loss or 0.0)
        # without the validations inside of the epoch
        between = self.seconds["valid"] - validated
        self.seconds["train"] += time.perf_counter() - started - between
        self.train_loss_dict[epoch] = loss
        self._plot("loss", loss, epoch)
        return {
            "epoch": epoch,
            "loss": loss,
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _validation_is_due(self, epoch: int) -> bool:
        return (epoch + 1) % self.eval_step == 0 or epoch + 1 == self.epochs

    def _validate(self, valid_data, epoch: int, show_progress: bool) -> dict:
        """Rank the validation cases, and save the weights if they are the best so far."""
        started = time.perf_counter()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.seconds["valid"] += time.perf_counter() - started
        self._plot(self.valid_metric, score, epoch)
        if self.valid_metric_bigger:
            better = score > self.best_valid_score
        else:
            better = score < self.best_valid_score
        self.cur_step = 0 if better else self.cur_step + 1
        if better:
            self.best_valid_score, self.best_valid_result, self.best_epoch = score, result, epoch
            self._save_best()
        if self.callback:
            self.callback(epoch, score)
        return {"valid_score": score, "valid_seconds": round(time.perf_counter() - started, 2)}

    def _valid_epoch(self, valid_data, show_progress=False):
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        return result[self.valid_metric], result

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Compute the metrics of one part of the data.

        Parameters
        ----------
        eval_data : DataLoader
            The part.
        load_best_model : bool
            Whether the best weights are read first.
        model_file : path, optional
            Folder of the run whose weights are read; this run's folder where None.
        show_progress : bool
            Whether a bar is drawn.

        Returns
        -------
        dict of str to float
            Metric -> value.
        """
        if load_best_model:
            folder = Path(model_file or self.folder)  # or RecBole's file in it
            self.load_best(folder.parent if folder.is_file() else folder)
        table, _ = self.rank(eval_data, show_progress=show_progress)
        return metrics.evaluate(
            table, self.config["metrics"], self.config["topk"], bool(self.config["group_by_user"])
        )

    def rank(
        self, eval_data, topk: int = 0, show_progress: bool = False, kept: Kept | None = None
    ) -> tuple[RankTable, TopLists | None]:
        """Rank the target of every case in one part of the data.

        Parameters
        ----------
        eval_data : DataLoader
            The part.
        topk : int
            Length of the lists of best items to return; 0 returns None for them.
        show_progress : bool
            Whether a bar is drawn.
        kept : Kept, optional
            Stored ranks to go on from, see `rank_cases`.

        Returns
        -------
        tuple of (RankTable, TopLists or None)
            The ranks, and the best items of every case.

        Raises
        ------
        UserError
            If scores are not finite.
        """
        dataset, config = self.ranked(eval_data), self.config
        part = part_of(dataset)
        mode = EvaluationMode.of_part(config["eval_args"]["mode"], part)
        candidates = self.drawn = None
        if mode.candidates:
            candidates = draw_candidates(
                dataset.interactions,
                dataset.cases,
                mode.candidates,
                config["candidate_seed"],
                config["candidates_exclude"],
            )
            if kept:
                self.drawn = fingerprint(dataset.interactions, dataset.cases, candidates)
        try:
            return rank_cases(
                self.model,
                dataset,
                dataset.cases,
                candidates=candidates,
                mask_history=bool(config["mask_history"]),
                memory=config["eval_memory"],
                topk=topk,
                progress=f"Evaluate {part}" if show_progress else None,
                kept=kept,
            )
        except FloatingPointError as error:
            advice = "it diverged; lower learning_rate, or set precision: fp32"
            if not self.epochs:
                advice = "it is not trained, so its own computation makes them"
            raise UserError(
                f"{config['model']} gives no numbers to rank by ({error}): {advice}"
            ) from None

    def _check_nan(self, loss):
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.config['model']} diverged: its loss is {loss.item()}; lower learning_rate, "
                "or set precision: fp32"
            )

    def ranked(self, eval_data: Any) -> Any:
        """Return the dataset whose cases `rank` ranks."""
        return eval_data._dataset

    def _plot(self, name: str, value: float, epoch: int) -> None:
        if self.saves:
            with naming(self.folder / TENSORBOARD):
                self.tensorboard.add_scalar(name, value, epoch)

    def _save_best(self) -> None:
        if not self.saves:
            return
        readback.forget(self.folder)
        self._store_weights(self.folder)

    def _store_weights(self, folder: Path) -> None:
        """Write the weights to a folder, and what is compared when they are read back."""
        # before the weights are saved: some models keep tensors that they score by, to be saved too
        scores = self._probe_cases() if self._has_probe_cases else None
        save_weights(self.model, folder)
        tensors = trained_tensors(self.model)
        if scores is not None and self.repeats is None:
            again = self._probe_cases()
            self.repeats = readback.agree(scores, again, self.config["precision"])
            if not self.repeats:
                self.logger.info(
                    f"{self.config['model']} scores a case differently each time: weights that "
                    "are read back are compared tensor by tensor alone"
                )
        scores = scores if self.repeats else None
        base = stored_weights(self.model).frozen_base
        readback.remember(folder, tensors, scores, self.config["precision"], base)

    def keep(self, step: int) -> None:
        """Store the weights after a step in a folder of their own, beside that of the run."""
        if not self.saves:
            return
        folder = self.folder.with_name(f"{self.folder.name}{run_folders.KEPT}{step}")
        with run_folders.locked(folder, self.logger.info):
            # what an earlier training has kept, and what was ranked by it
            (folder / run_folders.RUN).unlink(missing_ok=True)
            run_folders.clear(folder)
            self._store_weights(folder)
            if self.on_kept:
                self.on_kept(folder, step)
        self.logger.info(f"the weights of step {step} are kept: {folder.name}")

    def load_best(self, folder: Path | None = None) -> None:
        """Read the best weights back.

        Whatever training has changed is overwritten first: a tensor that the files lack must not go
        unnoticed because this process still holds it.

        Parameters
        ----------
        folder : Path, optional
            Folder of a run; this run's folder where None.

        Raises
        ------
        UserError
            If the weights or their scores are not those that were saved.
        """
        folder = folder or self.folder
        if not self.saves and folder == self.folder:
            raise UserError(
                "nothing was stored (saved=False): evaluate the weights that the model has by "
                "load_best_model=False"
            )
        if (folder / WEIGHTS).is_file():
            overwrite_trained(self.model)
        load_weights(self.model, folder)
        compares_scores = folder == self.folder and self._has_probe_cases
        probe = self._probe_cases if compares_scores else None
        readback.check(folder, all_tensors(self.model), probe)

    @property
    def _has_probe_cases(self) -> bool:
        return self.probed is not None and len(self.probed.cases) > 0

    def _probe_cases(self) -> np.ndarray:
        """Scores of a few validation cases."""
        dataset = self.probed
        assert dataset is not None
        return probing.probe(self.model, dataset, dataset.cases[: probing.CASES])

    def _save_state(self, epoch: int, train_data, position: Position = EPOCH_START) -> None:
        """Store the state after `epoch`, and after `position` in the next one."""
        if not self.saves:
            return
        state = {
            "base": stored_weights(self.model).frozen_base,
            "epoch": epoch,
            "position": position,
            "cur_step": self.cur_step,
            "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result,
            "model": resumable_tensors(self.model),
            "other": other_tensors(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": train_data.generator.get_state(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": json.dumps(_numpy_state()),
            "seconds": self.seconds,
            "history": self.history,
            "further": self._further_state(),
        }
        # a file and not its path: torch's own writer does not say that the disk is full
        with atomically(self.folder / STATE) as path, open(path, "wb") as file:
            torch.save(state, file)

    def _further_state(self) -> dict[str, Any]:
        """What else a trainer stores and restores."""
        return {}

    def _restore_further(self, state: dict[str, Any]) -> None:
        """Restore what `_further_state` returned."""

    def resume_checkpoint(self, resume_file):
        """Continue from state.pt of a run's folder, bit for bit.

        Parameters
        ----------
        resume_file : path
            The folder.

        Raises
        ------
        UserError
            If the file is damaged, or is the state of another run.
        """
        path = Path(resume_file) / STATE
        try:
            # torch's own reader compares no checksum
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(broken)
            state = torch.load(path, map_location="cpu", weights_only=True)
        # torch raises whatever its zip, pickle and struct readers raise
        except Exception as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove it, and the run starts over"
            ) from None
        with _foreign_state_as_user_error(path):
            self._restore(state, path)
            # for its errors alone: `_restore_generators` sets them again
            self._set_generators(state)
        self._state = state
        self.logger.info(f"resumed after epoch {state['epoch']} and {self.position[0]} steps")

    def _restore(self, state: dict, path: Path) -> None:
        """Restore weights, optimizer and counters; a foreign state leads to any exception."""
        if not isinstance(state, dict):
            raise TypeError(f"it is {type(state).__name__}")
        wrong = [key for key, kind in STATE_KINDS.items() if not isinstance(state[key], kind)]
        if wrong:
            raise TypeError(f"{wrong[0]} is {type(state[wrong[0]]).__name__}")
        base = stored_weights(self.model).frozen_base
        if base and state.get("base") not in (None, base):
            raise UserError(
                f"{path}: the weights that its adapters were trained on are others now; put those "
                "back, or remove it, and the run starts over"
            )
        names = resumable_tensors(self.model).keys()
        if absent := sorted(names - state["model"].keys()):
            raise UserError(
                f"{path} lacks {len(absent)} tensors of this model, the first is {absent[0]}; "
                "remove it, and the run starts over"
            )
        self.model.load_state_dict({name: state["model"][name] for name in names}, strict=False)
        for name, value in state["other"].items():
            setattr(self.model, name, value.to(self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        for part in getattr(self.optimizer, "parts", (self.optimizer,)):
            _check_shapes(part)
        self.scaler.load_state_dict(state["scaler"])
        self.start_epoch = state["epoch"] + 1
        self.cur_step, self.best_epoch = state["cur_step"], state["best_epoch"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"]
        self.seconds, self.history = state["seconds"], state["history"]
        self.position = state["position"]
        self._restore_further(state["further"])

    def _restore_generators(self, train_data) -> None:
        """Set the random generators last: nothing else may use them before the first batch."""
        state = self.__dict__.pop("_state", None)
        if state is None:
            return
        with _foreign_state_as_user_error(self.folder / STATE):
            train_data.generator.set_state(state["loader"].cpu())
            self._set_generators(state)

    @staticmethod
    def _set_generators(state: dict) -> None:
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = json.loads(state["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _new_folder(saved: Path, model: str) -> Path:
    """Make a folder for a training that RecBole's own code starts, since it names none.

    Trainings that begin in the same second, in any number of processes, get different folders.
    """
    saved.mkdir(parents=True, exist_ok=True)
    name, number = f"{model}-{time.strftime('%Y%m%d-%H%M%S')}", 1
    while True:
        folder = saved / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for a state of another parameter, whose shape torch does not compare."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of the optimizer is of another shape")


@contextmanager
def _foreign_state_as_user_error(path: Path) -> Iterator[None]:
    """Raise the errors to which a state of another run leads as one UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a state of this run ({type(error).__name__}: {message}); remove it, "
            "and the run starts over"
        ) from None


def check_kinds(folder: Path) -> None:
    """Check that the files of a run's folder are files, and its folders are folders.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Raises
    ------
    UserError
        If one of them is not.
    """
    for name in (WEIGHTS, STATE, readback.FILE, run_folders.RUN):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: expected a file, found a folder; remove it")
    for name in (TENSORBOARD, run_folders.BACKBONE):
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: expected a folder, found a file; remove it")


def part_of(dataset) -> str:
    """Return which part of the data a dataset is.

    Parameters
    ----------
    dataset : Dataset
        A dataset of test cases, or of all or some validation cases.

    Returns
    -------
    {"test", "valid"}
        The name of the part.
    """
    return "test" if dataset.cases is dataset.split.test else "valid"


def epoch_line(line: dict, best: bool) -> str:
    """Return the log's line about an epoch, or about a validation inside of one.

    Parameters
    ----------
    line : dict
        The entry of `Harness.history`.
    best : bool
        Whether its weights are the best so far.

    Returns
    -------
    str
        The line.
    """
    text = f"epoch {line['epoch']}: loss {line['loss']:.6f} in {line['seconds']:.1f} s"
    if "step" in line:
        text = f"step {line['step']}: loss {line['loss']:.6f}"
    if "valid_score" in line:
        text += f", valid {line['valid_score']:.6f} in {line['valid_seconds']:.1f} s"
        text += " (best)" if best else ""
    return text


def _numpy_state() -> list:
    """The state of numpy's generator in numpy's legacy order, as JSON can hold it."""
    state = np.random.get_state(legacy=False)
    keys, position = state["state"]["key"].tolist(), state["state"]["pos"]
    return [state["bit_generator"], keys, position, state["has_gauss"], state["gauss"]]


@lru_cache
def trainer_class(name: str, model_type: ModelType) -> type:
    """Make the class of the trainer that RecBole picks for a model, with our harness over it.

    Parameters
    ----------
    name : str
        Name of the model's class.
    model_type : ModelType
        RecBole's type of the model.

    Returns
    -------
    type
        A subclass of Harness.

    Raises
    ------
    UserError
        If the trainer has a training loop of its own.
    """
    base = get_trainer(model_type, name)
    if issubclass(base, Harness):
        return base
    if not issubclass(base, stock.Trainer):
        raise UserError(
            f"{name}: trained by {base.__name__}, which this harness does not run; use "
            "recbole.quick_start.run_recbole"
        )
    loops = (stock.Trainer, stock.S3RecTrainer)  # S3Rec's stages are runs here
    if next(kind for kind in base.__mro__ if "fit" in vars(kind)) not in loops:
        raise UserError(
            f"{name}: {base.__name__} has a training loop of its own, which this harness does not "
            "run; use recbole.quick_start.run_recbole"
        )
    behind = (FolderTrainer,) if base is stock.Trainer else (base, FolderTrainer)
    return type(f"Harness{base.__name__}", (Harness, *behind), {})
