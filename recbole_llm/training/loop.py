"""Training: our loop, stop rule, checkpoints and evaluation over whatever trainer RecBole picks for a model."""

import copy
import json
import random
import time
import zipfile
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import trainer as stock
from recbole.utils import WandbLogger, get_trainer
from recbole.utils.enum_type import ModelType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter

from ..contracts.models import ContrastiveTrainable, StoredWeights, Trainable
from ..data.cases.candidates import draw_candidates, fingerprint
from ..data.cases.splits import draw
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation import probe as probing
from ..evaluation.loop import TopLists, rank_cases
from ..evaluation.ranks import RankTable
from ..evaluation.resumable import Kept
from ..language.backbones.precision import in_software
from ..language.tokens.batches import by_length, shuffled_steps
from ..storage import readback, run_folders
from ..storage.files import atomically, naming
from ..storage.progress import progress
from ..storage.run_folders import WEIGHTS
from . import optimizers
from .losses import backward

SAVE_SECONDS = 120  # most training that a killed process loses
FORECAST_STEPS = 5  # training steps that are timed before the forecast
STATE, OTHER = "state.pt", "other_parameter."
TENSORBOARD = "tensorboard"
CHECKPOINT = "recbole.pth"  # in RecBole's own form, of a training that RecBole's code began
STATE_KINDS = {  # what state.pt holds beside tensors and random generators
    "epoch": int, "position": tuple, "cur_step": int, "best_epoch": int, "best_valid_score": float,
    "best_valid_result": (dict, type(None)), "model": dict, "other": dict, "seconds": dict, "history": list,
}  # fmt: skip


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

    def __init__(self, config, model):
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


class Harness:
    """Mixin over a RecBole trainer, which keeps its `_train_epoch` and `_build_optimizer`.

    Files of `folder`: model.safetensors holds the best weights so far, and readback.json what they are compared
    with when they are read; state.pt holds the last ones with the optimizer, the random generators and the counters,
    so that a resumed run equals an uninterrupted one.
    """

    def __init__(self, config, model, folder: Path | None = None):
        self.folder = folder or _new_folder(Path(config["checkpoint_dir"]), config["model"])
        check_kinds(self.folder)
        super().__init__(config, model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds = {"train": 0.0, "valid": 0.0}
        self.best_epoch = -1
        self.history: list[dict] = []
        self.position = (0, 0.0, 0)  # of a resumed epoch
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.drawn: str | None = None  # fingerprint of the candidates of the last ranking
        self.probed = None  # the dataset with the validation cases that read-back weights score
        self.repeats: bool | None = None  # whether the model scores a case twice alike
        self.saves = True

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train until `epochs` or until validation has stopped improving, strictly and on unrounded scores.

        Returns the best validation score and its metrics, as RecBole's trainers do. With
        `saved=False` nothing is stored, and the model has its last weights at the end.
        """
        self.saves = saved
        if not saved:
            with suppress(OSError):  # what a folder holds already stays there
                self.folder.rmdir()
        self.probed = self.ranked(valid_data) if valid_data else None
        self._restore_generator(train_data)
        if (self.config["train_neg_sample_args"] or {}).get("dynamic"):
            train_data.get_model(self.model)
        if self.epochs == 0:
            self._save_best()
        for epoch in range(self.start_epoch, self.epochs):
            if self.cur_step > self.stopping_step:
                break
            started = time.perf_counter()
            loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
            loss = float(sum(loss) if isinstance(loss, tuple) else loss or 0.0)
            self.seconds["train"] += time.perf_counter() - started
            self.train_loss_dict[epoch] = loss
            self._plot("loss", loss, epoch)
            line = {
                "epoch": epoch,
                "loss": loss,
                "seconds": round(time.perf_counter() - started, 2),
            }
            if (
                valid_data
                and self.eval_step > 0
                and ((epoch + 1) % self.eval_step == 0 or epoch + 1 == self.epochs)
            ):
                line |= self._validate(valid_data, epoch, show_progress)
                if callback_fn:
                    callback_fn(epoch, line["valid_score"])
            elif not valid_data or self.eval_step <= 0:
                self._save_best()
                self.best_epoch = epoch
            self.history.append(line)
            if verbose:
                self.logger.info(_told(line, self.best_epoch == epoch))
            self._save_state(epoch, train_data)
        return self.best_valid_score, self.best_valid_result

    def _validate(self, valid_data, epoch: int, show_progress: bool) -> dict:
        started = time.perf_counter()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.seconds["valid"] += time.perf_counter() - started
        self._plot(self.valid_metric, score, epoch)
        better = (
            score > self.best_valid_score
            if self.valid_metric_bigger
            else score < self.best_valid_score
        )
        self.cur_step = 0 if better else self.cur_step + 1
        if better:
            self.best_valid_score, self.best_valid_result, self.best_epoch = score, result, epoch
            self._save_best()
        return {"valid_score": score, "valid_seconds": round(time.perf_counter() - started, 2)}

    def _valid_epoch(self, valid_data, show_progress=False):
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        return result[self.valid_metric], result

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Metric -> value of one part; `model_file` is a run folder."""
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
        """The rank of every case's target in one part of the data. kept: see rank_cases."""
        dataset, config = self.ranked(eval_data), self.config
        part = part_of(dataset)
        mode = config["eval_args"]["mode"][part]
        candidates = self.drawn = None
        if mode != "full":
            candidates = draw_candidates(
                dataset.tables,
                dataset.cases,
                int(mode[3:]),
                config["candidate_seed"],
                config["candidates_exclude"],
            )
            self.drawn = kept and fingerprint(
                dataset.tables, dataset.cases, candidates
            )  # of a part that is stored
        try:
            return rank_cases(
                self.model, dataset, dataset.cases, candidates=candidates, mask_history=bool(config["mask_history"]),
                memory=config["eval_memory"], topk=topk, progress=f"Evaluate {part}" if show_progress else None, kept=kept,
            )  # fmt: skip
        except FloatingPointError as error:
            raise UserError(
                f"{config['model']} gives no numbers to rank by ({error}): it diverged; lower "
                "learning_rate, or set precision: fp32"
            ) from None

    def _check_nan(self, loss):
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.config['model']} diverged: its loss is {loss.item()}; lower learning_rate, "
                "or set precision: fp32"
            )

    def ranked(self, eval_data):
        """The dataset whose cases `rank` ranks."""
        return eval_data._dataset

    def _plot(self, name: str, value: float, epoch: int) -> None:
        if self.saves:
            with naming(self.folder / TENSORBOARD):
                self.tensorboard.add_scalar(name, value, epoch)

    def _save_best(self) -> None:
        if not self.saves:
            return
        readback.forget(self.folder)
        scores = self._probe()  # first: some models keep what they score by, and that is stored too
        save_weights(self.model, self.folder)
        tensors = trained_tensors(self.model)
        if scores is not None and self.repeats is None:
            again = self._probe()
            self.repeats = readback.agree(scores, again, self.config["precision"])
            if not self.repeats:
                self.logger.info(
                    f"{self.config['model']} scores a case differently each time: weights that "
                    "are read back are compared tensor by tensor alone"
                )
        scores = scores if self.repeats else None
        base = stored_weights(self.model).frozen_base
        readback.remember(self.folder, tensors, scores, self.config["precision"], base)

    def load_best(self, folder: Path | None = None) -> None:
        """Read the best weights back.

        Whatever training has changed is overwritten first, so that nothing that the files lack
        goes unnoticed because this process still holds it.

        Parameters
        ----------
        folder : of a run; this trainer's own where it is None.

        Raises
        ------
        UserError : if these are not the weights, or not the scores, that were saved.
        """
        folder = folder or self.folder
        if (folder / WEIGHTS).is_file():
            _wipe(self.model)
        load_weights(self.model, folder)
        own = folder == self.folder and self.probed is not None
        readback.check(folder, all_tensors(self.model), self._probe if own else None)

    def _probe(self) -> np.ndarray | None:
        """Scores of a few validation cases; None if there are no such cases."""
        if self.probed is None or not len(self.probed.cases):
            return None
        cases = self.probed.cases[: probing.CASES]
        return probing.probe(self.model, self.probed, cases)

    def _save_state(self, epoch: int, train_data, position: tuple = (0, 0.0, 0)) -> None:
        """After `epoch`, and after `position` = (steps, loss, groups) of the next one."""
        if not self.saves:
            return
        state = {
            "base": stored_weights(self.model).frozen_base, "epoch": epoch, "position": position, "cur_step": self.cur_step, "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score), "best_valid_result": self.best_valid_result,
            "model": resumable_tensors(self.model), "other": _other_tensors(self.model), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "loader": train_data.generator.get_state(), "torch": torch.get_rng_state(), "python": random.getstate(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": json.dumps(_numpy_state()), "seconds": self.seconds, "history": self.history,
        }  # fmt: skip
        # a file and not its path: torch's own writer does not say that the disk is full
        with atomically(self.folder / STATE) as path, open(path, "wb") as file:
            torch.save(state, file)

    def resume_checkpoint(self, resume_file):
        """Continue from state.pt of a run folder, bit for bit."""
        path = Path(resume_file) / STATE
        try:
            with zipfile.ZipFile(path) as archive:  # torch's own reader compares no checksum
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(broken)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its zip, pickle and struct readers raise
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove it, and the run starts over"
            ) from None
        with _fitting(path):
            self._take_state(state, path)
            self._set_generators(state)  # once here, where a state that has none is told of
        self._state = state
        self.logger.info(f"resumed after epoch {state['epoch']} and {self.position[0]} steps")

    def _take_state(self, state: dict, path: Path) -> None:
        """Weights, optimizer and counters of state.pt. Raises whatever a foreign state leads to."""
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
        own = resumable_tensors(self.model)
        if absent := sorted(own.keys() - state["model"].keys()):
            raise UserError(
                f"{path} lacks {len(absent)} tensors of this model, the first is {absent[0]}; "
                "remove it, and the run starts over"
            )
        self.model.load_state_dict({name: state["model"][name] for name in own}, strict=False)
        for name, value in state["other"].items():
            setattr(self.model, name, value.to(self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        for part in getattr(self.optimizer, "parts", (self.optimizer,)):
            for parameter, values in part.state.items():
                for name, value in values.items():  # torch compares none of their shapes
                    if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} of the optimizer is of another shape")
        self.scaler.load_state_dict(state["scaler"])
        self.start_epoch, self.cur_step, self.best_epoch = (
            state["epoch"] + 1,
            state["cur_step"],
            state["best_epoch"],
        )
        self.best_valid_score, self.best_valid_result = (
            state["best_valid_score"],
            state["best_valid_result"],
        )
        self.seconds, self.history, self.position = (
            state["seconds"],
            state["history"],
            state["position"],
        )

    def _restore_generator(self, train_data) -> None:
        """Set the random generators last, when nothing else will draw from them before the first batch."""
        state = self.__dict__.pop("_state", None)
        if state is None:
            return
        with _fitting(self.folder / STATE):
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
    """Make a folder for a training of RecBole's own code, which names none.

    Two that begin in one second, in one process or two, get one each.
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


@contextmanager
def _fitting(path: Path):
    """Within it, a stored state that is not of this run is told of in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a state of this run ({type(error).__name__}: {said}); remove it, and "
            "the run starts over"
        ) from None


def check_kinds(folder: Path) -> None:
    """Raise UserError for a folder in the place of a run's file, or the reverse."""
    for name in (WEIGHTS, STATE, readback.FILE, run_folders.RUN):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: expected a file, found a folder; remove it")
    for name in (TENSORBOARD, run_folders.BACKBONE):
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: expected a folder, found a file; remove it")


def part_of(dataset) -> str:
    """ "test" or "valid": whose cases these are (a draw of validation cases is still validation)."""
    return "test" if dataset.cases is dataset.split.test else "valid"


def _told(line: dict, best: bool) -> str:
    valid = (
        f", valid {line['valid_score']:.6f} in {line['valid_seconds']:.1f} "
        f"s{' (best)' if best else ''}"
        if "valid_score" in line
        else ""
    )
    return f"epoch {line['epoch']}: loss {line['loss']:.6f} in {line['seconds']:.1f} s{valid}"


def _numpy_state() -> list:
    name, keys, *rest = np.random.get_state()
    return [name, keys.tolist(), *rest]


def _other_tensors(model) -> dict[str, torch.Tensor]:
    """RecBole's `other_parameter`, tensors only: anything else is rebuilt from the training data."""
    names = getattr(model, "other_parameter_name", [])
    return {name: getattr(model, name) for name in names if torch.is_tensor(getattr(model, name))}


def stored_weights(model) -> StoredWeights:
    """How a model's weights are stored; RecBole's models store nothing of their own."""
    return model if isinstance(model, StoredWeights) else StoredWeights()


def trained_tensors(model) -> dict[str, torch.Tensor]:
    """What training changes and a run stores, by name.

    That is every trained parameter, the buffers outside a backbone, and RecBole's
    `other_parameter`. Tied weights are there once.
    """
    apart = stored_weights(model).externally_saved
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: value
        for name, value in all_tensors(model).items()
        if name in trained or not (name in parameters or name.startswith(apart))
    }


def all_tensors(model) -> dict[str, torch.Tensor]:
    """Every tensor of a model that could be stored, by name."""
    other = {OTHER + name: value for name, value in _other_tensors(model).items()}
    return model.state_dict() | other


def resumable_tensors(model) -> dict[str, torch.Tensor]:
    """What a stopped training needs to go on, by name.

    Of a backbone that is frozen under adapters, that is the adapters alone: the constructor reads
    the rest again from where it came from, in quantised form too.
    """
    apart, parameters = stored_weights(model).externally_saved, dict(model.named_parameters())
    frozen = [
        name
        for name, value in parameters.items()
        if name.startswith(apart) and not value.requires_grad
    ]
    # all that a module with frozen weights holds, such as the scales of quantised ones
    modules = tuple({name.rpartition(".")[0] + "." for name in frozen})
    trained = {name for name, value in parameters.items() if value.requires_grad}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in trained or not name.startswith(modules)
    }


def _wipe(model) -> None:
    """Overwrite what training changes: with NaN, or 0 where there are whole numbers."""
    with torch.no_grad():
        for name, value in trained_tensors(model).items():
            nothing = torch.nan if value.is_floating_point() else 0
            if name.startswith(OTHER):  # the tensor itself may be another's too
                setattr(model, name.removeprefix(OTHER), torch.full_like(value, nothing))
            else:
                value.fill_(nothing)


def save_weights(model, folder: Path) -> None:
    """What `StoredWeights.save` does not write goes to model.safetensors."""
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(stored_weights(model).externally_saved)
    }
    tensors |= {OTHER + name: value for name, value in _other_tensors(model).items()}
    stored_weights(model).save(folder)
    # clone: tensors that share memory (tied weights) are refused otherwise
    _atomic(
        folder / WEIGHTS,
        lambda path: save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            path,
        ),
    )


def load_weights(model, folder: Path) -> None:
    """The counterpart of `save_weights`. Raises UserError when the weights are another model's."""
    stored_weights(model).load(folder)
    load_tensors(model, folder)


def load_tensors(model, folder: Path, left: tuple[str, ...] = ()) -> None:
    """Of `load_weights`, what a model with a `load` of its own does not load.

    left : beginnings of the names of tensors that stay as they are.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} holds no checkpoint ({WEIGHTS} is missing); give the folder of a finished "
            "run"
        )
    try:
        tensors = load_file(path, device=str(model.device))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); remove {folder} and run again") from None
    for name in [name for name in tensors if name.startswith(OTHER)]:
        setattr(model, name.removeprefix(OTHER), tensors.pop(name))
    left += stored_weights(model).externally_saved
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(left)}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(left)}
    wrong = sorted(own.keys() ^ tensors.keys()) or [
        name for name in own if own[name].shape != tensors[name].shape
    ]
    if wrong:
        raise UserError(
            f"{folder} is a checkpoint of another model, dataset or setting: {len(wrong)} tensors "
            f"differ, the first is {wrong[0]}"
        )
    model.load_state_dict(tensors, strict=False)


def _atomic(path: Path, write) -> None:
    with atomically(path) as temporary:
        write(temporary)


@lru_cache
def trainer_class(name: str, model_type: ModelType) -> type:
    """The trainer that RecBole picks for a model, with our harness over it."""
    base = get_trainer(model_type, name)
    if issubclass(base, Harness):
        return base
    if not issubclass(base, stock.Trainer):
        raise UserError(
            f"{name}: trained by {base.__name__}, which this harness does not run; use "
            "recbole.quick_start.run_recbole"
        )
    if next(kind for kind in base.__mro__ if "fit" in vars(kind)) not in (
        stock.Trainer,
        stock.S3RecTrainer,
    ):  # S3Rec's stages are runs here
        raise UserError(
            f"{name}: {base.__name__} has a training loop of its own, which this harness does not "
            "run; use recbole.quick_start.run_recbole"
        )
    behind = (FolderTrainer,) if base is stock.Trainer else (base, FolderTrainer)
    return type(f"Harness{base.__name__}", (Harness, *behind), {})


class LLMTrainer(Harness, FolderTrainer):
    """The epoch of our models: steps of `train_batch_size` groups of texts, in passes of like length that fit memory.

    A model without trainable parameters is not trained. The learning rate is a function of the step alone, and
    the order of an epoch one of (seed, epoch), so that a resumed run goes on as if it had not stopped.
    """

    def __init__(self, config, model, folder: Path | None = None):
        super().__init__(config, model, folder)
        if not isinstance(model, Trainable) or not optimizers.trained(model):
            self.epochs = 0
        self.selecting = False
        precision = config["precision"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        if in_software(self.device, precision):
            self.logger.warning(
                f"precision: this CPU has no {precision} instructions, which makes {precision} far "
                "slower than fp32; take precision: fp32 here"
            )

    def _build_optimizer(self, **kwargs):
        return optimizers.build(
            self.model,
            self.config["learner"],
            self.learning_rate,
            self.weight_decay,
            self.config["precision"],
        )

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.model.train()
        config = self.config
        model = self.model
        examples = model.examples(epoch_idx)
        size = [sum(map(model.cost, model.pieces(example))) for example in examples]
        steps = shuffled_steps(
            size, config["train_batch_size"], np.random.default_rng([config["seed"], epoch_idx, 1])
        )
        begin, total, groups = self.position
        self.position = (0, 0.0, 0)
        started = saved = time.perf_counter()
        bar = progress(steps, desc=f"Train {epoch_idx}", disable=not show_progress)
        for step, rows in enumerate(bar):
            if step < begin:
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * optimizers.rate(
                    (epoch_idx + (step + 1) / len(steps)) / self.epochs, config["warmup"] or 0.0
                )
            total += self._step([examples[row] for row in rows]) * len(rows)
            groups += len(rows)
            if epoch_idx == self.start_epoch and step == min(
                begin + FORECAST_STEPS, len(steps) - 1
            ):
                done = sum(size[row] for rows in steps[begin : step + 1] for row in rows)
                self._forecast(time.perf_counter() - started, done, sum(size))
            if time.perf_counter() - saved > SAVE_SECONDS:
                self._save_state(epoch_idx - 1, train_data, (step + 1, total, groups))
                saved = time.perf_counter()
            bar.set_postfix_str(f"loss {total / groups:.3f}")
        return total / max(1, groups)

    def _step(self, examples: list) -> float:
        """One update; the loss per target, and what the model compares over all examples."""
        model = self.model
        pieces = [piece for example in examples for piece in model.pieces(example)]
        targets = max(1, sum(map(model.targets, pieces)))
        budget = self.config["pass_tokens"]
        parts = by_length([model.cost(piece) for piece in pieces], budget, cost=model.pass_cost)
        batches = [model.collate([pieces[row] for row in part]) for part in parts]
        contrastive = isinstance(model, ContrastiveTrainable) and model.contrastive
        place = torch.from_numpy(np.argsort(np.concatenate(parts))).to(self.device)

        def forward(batch, with_loss: bool):
            with model.autocast():
                if not contrastive:
                    return model.loss(batch) / targets, None
                loss, vectors = model.loss_and_vectors(batch, with_loss)
            return loss / targets, vectors

        def join(vectors):
            ordered = vectors[place].view(len(examples), -1, *vectors.shape[1:])
            return model.pair_loss(ordered, examples)

        self.optimizer.zero_grad()
        whole = contrastive and sum(map(model.batch_cost, batches)) <= budget
        loss = backward(forward, batches, join if contrastive else None, self.scaler.scale, whole)
        self._check_nan(torch.tensor(loss))
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(optimizers.trained(model), **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _forecast(self, seconds: float, done: int, total: int) -> None:
        """Tell how long the training is going to take, by the time that the first steps took."""
        epochs, unit = self.epochs - self.start_epoch, self.model.cost_unit
        size = f"{total / 1e6:.2f} M" if total >= 10_000 else f"{total}"
        minutes = epochs * total * seconds / done / 60
        self.logger.info(
            f"forecast: {epochs} epochs of {size} {unit} at {done / seconds:.0f} {unit}/s: "
            f"{minutes:.1f} minutes, {run_folders.peak_memory():.0f} MiB so far; "
            "validation and test come on top"
        )

    def ranked(self, eval_data):
        """Validation is on a fixed draw of users: selecting a checkpoint needs no more, and each costs decoding."""
        dataset = eval_data._dataset
        if part_of(dataset) == "valid":
            dataset = copy.copy(dataset)
            dataset.cases = draw(dataset.cases, self.config["valid_users"])
        return dataset

    def rank(self, eval_data, topk=0, show_progress=False, kept=None):
        self.model.start_ranking(part_of(eval_data._dataset), self.selecting, kept and kept.weights)
        return super().rank(eval_data, topk, show_progress, kept)

    def _valid_epoch(self, valid_data, show_progress=False):
        self.selecting = True
        try:
            return super()._valid_epoch(valid_data, show_progress)
        finally:
            self.selecting = False
