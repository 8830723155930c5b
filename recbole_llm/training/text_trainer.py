"""The training of our models: steps over examples, in passes that fit memory."""

import copy
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..contracts.models import ContrastiveTrainable, Trainable
from ..data.cases.splits import draw
from ..language.backbones.precision import in_software
from ..language.passes import PassBudget, fits
from ..language.tokens.batches import ShuffledSteps, by_length, padded_size
from ..storage import run_folders
from ..storage.progress import progress
from . import optimizers
from .loop import EPOCH_START, Harness, epoch_line, part_of
from .losses import backward, random_state, set_random_state

SAVE_SECONDS = 120  # longest training that is lost when a process is killed
SAMPLE = 1024  # examples of an epoch whose lengths are looked at before the first step
FORECAST_STEPS = 5  # training steps that are timed before the forecast


class LLMTrainer(Harness):
    """Trains the models of this package.

    An epoch consists of steps of `train_batch_size` examples. A step consists of passes of texts of
    similar length that fit memory. A model without trainable parameters is not trained.

    The learning rate is a function of the step alone, and the order of an epoch is one of (seed,
    epoch), so that a resumed run continues as if it had not stopped.
    """

    def __init__(self, config: Any, model: Any, folder: Path | None = None):
        super().__init__(config, model, folder)
        if not isinstance(model, Trainable) or not optimizers.trained(self.model):
            self.epochs = 0
        self.selecting = False
        # a Trainable that is no text model has costs of its own
        self.passes: PassBudget = getattr(model, "passes", None) or PassBudget("auto")
        self.steps = 0  # made so far, in all epochs
        self.sizes = 0, 0  # tokens of the largest pass and of the longest text of the last step
        self.planned = 0  # tokens of the longest text that passes were fitted to the memory for
        precision = config["precision"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        if in_software(self.device, precision):
            self.logger.warning(
                f"precision: this CPU has no {precision} instructions, which makes {precision} far "
                "slower than fp32; take precision: fp32 here"
            )

    def _build_optimizer(self, **kwargs: Any) -> Any:
        return optimizers.build(
            self.model,
            self.config["learner"],
            self.learning_rate,
            self.weight_decay,
            self.config["precision"],
        )

    def fit(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float] | None]:
        """See `Harness.fit`; says which steps of `keep_checkpoints` were not reached."""
        result = super().fit(*args, **kwargs)
        beyond = [step for step in self.config["keep_checkpoints"] or () if step > self.steps]
        if beyond:
            self.logger.warning(
                f"keep_checkpoints: training ended after {self.steps} steps, so that nothing is "
                f"kept of {', '.join(map(str, beyond))}"
            )
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.model.train()
        config, examples = self.config, self.model.examples(epoch_idx)
        rng = np.random.default_rng([config["seed"], epoch_idx, 1])
        steps = ShuffledSteps(len(examples), config["train_batch_size"], rng)
        first_step, total, count = self.position
        self.position = EPOCH_START
        last_timed = min(first_step + FORECAST_STEPS, len(steps) - 1)
        seconds, timed_cost, timed_count = 0.0, 0, 0
        saved = time.perf_counter()
        bar = progress(
            self._made(examples, steps, first_step),
            desc=f"Train {epoch_idx}",
            total=len(steps),
            initial=first_step,
            disable=not show_progress,
        )
        for step, (batch, cost) in enumerate(bar, first_step):
            started = time.perf_counter()
            self.steps += 1
            self._set_learning_rate(epoch_idx + (step + 1) / len(steps), len(steps))
            total += self._step(batch) * len(batch)
            count += len(batch)
            seconds += time.perf_counter() - started
            timed_cost, timed_count = timed_cost + cost, timed_count + len(batch)
            if epoch_idx == self.start_epoch and step == last_timed:
                self._forecast(seconds, timed_cost, timed_cost * len(examples) // timed_count)
            if self.steps in (config["keep_checkpoints"] or ()):
                self.keep(self.steps)
            bar.set_postfix_str(f"loss {total / count:.3f}")
            if self._ends():
                self.epochs = epoch_idx + 1  # which is validated as the last epoch
                break
            # a state of a step is stored behind the validation that is due, lest it be left out
            validates = self._validates(step + 1 < len(steps))
            if validates:
                self._validate_between(epoch_idx, total / count, show_progress)
            if validates or time.perf_counter() - saved > SAVE_SECONDS:
                self._save_state(epoch_idx - 1, train_data, (step + 1, total, count))
                saved = time.perf_counter()
            if self.cur_step > self.stopping_step:
                break
        return total / max(1, count)

    def _made(
        self, examples: Sequence, steps: ShuffledSteps, first: int
    ) -> Iterator[tuple[list, int]]:
        """Make the examples of each step from one on; yields them, and their cost.

        Examples are made for a chunk of steps at a time, whatever the size of the epoch.
        """
        model = self.model
        for number in range(first // steps.near, steps.chunks):
            made = [examples[row] for row in steps.chunk(number)]
            costs = [list(map(model.cost, model.pieces(example))) for example in made]
            self._plan(examples, made, costs)
            whole = list(map(sum, costs))
            for step, rows in enumerate(steps.deal(number, whole), number * steps.near):
                if step >= first:
                    yield [made[row] for row in rows], sum(whole[row] for row in rows)

    def _ends(self) -> bool:
        """Whether the last step was that of `max_steps`."""
        most = self.config["max_steps"]
        return bool(most and self.steps >= most)

    def _validates(self, goes_on: bool) -> bool:
        """Whether a validation is due between two steps of an epoch."""
        every = self.config["valid_every"]
        return bool(every and goes_on and self.valid_data and self.steps % every == 0)

    def _validation_is_due(self, epoch):
        """After the last epoch, and where an epoch ends with a step of `valid_every`."""
        every = self.config["valid_every"]
        if not every:
            return super()._validation_is_due(epoch)
        is_due = self.steps % every == 0 or epoch + 1 == self.epochs
        return is_due and self.cur_step <= self.stopping_step

    def _validate_between(self, epoch: int, loss: float, show_progress: bool) -> None:
        """Validate inside of an epoch; random numbers go on as if it had not been done."""
        state = random_state()
        line = {"epoch": epoch, "step": self.steps, "loss": loss, "seconds": 0.0}
        line |= self._validate(self.valid_data, epoch, show_progress)
        self.history.append(line)
        self.logger.info(epoch_line(line, self.cur_step == 0))
        set_random_state(state)
        self.model.train()

    def _set_learning_rate(self, epochs: float, steps: int) -> None:
        """Set the learning rate of all parameters after a number of epochs."""
        config, done = self.config, epochs / self.epochs
        if (most := config["max_steps"]) and most < self.epochs * steps:
            done = self.steps / most
        share = optimizers.rate(done, config["warmup"] or 0.0, config["schedule"] or "cosine")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share

    def _further_state(self):
        """Passes of another size would give other sums, in their last digits."""
        bundle = getattr(self.model, "bundle", None)
        return {
            "steps": self.steps,
            "pass_tokens": self.passes.tokens,
            "planned": self.planned,
            "recomputes": bool(bundle and bundle.recomputes),
        }

    def _restore_further(self, state):
        """See `Harness._restore_further`."""
        self.steps = state["steps"]
        self.passes.tokens, self.planned = state["pass_tokens"], state["planned"]
        if state["recomputes"]:
            self.model.recompute()
        if self._ends():
            self.epochs = self.start_epoch

    def _plan(self, examples: Sequence, made: list, costs: list[list[int]]) -> None:
        """Choose passes that fit into memory, where a text is longer than those planned for.

        Parameters
        ----------
        examples : sequence
            The examples of the epoch, some of which are looked at before the first step.
        made : list
            Those of the next steps.
        costs : list of list of int
            The cost of each of their pieces.
        """
        model, size = self.model, self.config["train_batch_size"]
        longest = max(map(max, costs))
        if not self.planned:
            for row in range(0, len(examples), max(1, len(examples) // SAMPLE)):
                longest = max(longest, *map(model.cost, model.pieces(examples[row])))
        if padded_size(longest) <= padded_size(self.planned):
            return
        self.planned = longest
        largest = sum(sorted(map(sum, costs))[-size:])
        pieces = chain.from_iterable(map(model.pieces, made[:size]))
        model.fit_passes(longest, largest, list(pieces))

    def _step(self, examples: list) -> float:
        """Make one update, and return the loss: its mean per target, plus that over all pairs.

        Where memory runs out, it is begun again in smaller passes, with the same random numbers.
        """
        state, losses = random_state(), []
        while not fits(lambda: losses.append(self._gradients(examples))):
            set_random_state(state)
            self._shrink()
        self._check_nan(torch.tensor(losses[0]))
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(optimizers.trained(self.model), **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses[0]

    def _shrink(self) -> None:
        """Take smaller passes; of one text, with activations that are computed twice."""
        largest, longest = self.sizes
        if largest <= longest and self.model.recompute():
            self.logger.warning(
                "memory ran out: activations are computed again in the backward pass from here on "
                "(checkpoint)"
            )
        else:
            self.passes.shrink(largest, longest)

    def _gradients(self, examples: list) -> float:
        """Compute the gradients of a step, and return its loss."""
        model = self.model
        pieces = list(chain.from_iterable(map(model.pieces, examples)))
        targets = max(1, sum(map(model.targets, pieces)))
        budget, costs = self.passes.tokens, [model.cost(piece) for piece in pieces]
        passes = by_length(costs, budget, cost=model.pass_cost)
        longest = [max(np.take(costs, rows)) for rows in passes]
        largest = max(len(rows) * most for rows, most in zip(passes, longest, strict=True))
        self.sizes = int(largest), int(max(longest))
        batches = []
        for rows in passes:
            batches.append(model.collate([pieces[row] for row in rows]))
        contrastive = isinstance(model, ContrastiveTrainable) and model.contrastive
        place = torch.from_numpy(np.argsort(np.concatenate(passes))).to(self.device)
        no_vectors = torch.empty(0)

        def forward(batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
            with model.autocast():
                if not contrastive:
                    return model.loss(batch) / targets, no_vectors
                loss, vectors = model.loss_and_vectors(batch, with_loss)
            return loss / targets, vectors

        def join(vectors: torch.Tensor) -> torch.Tensor:
            ordered = vectors[place].view(len(examples), -1, *vectors.shape[1:])
            most = self.config["contrast_batch"] or len(examples)
            # as few groups as that allows, and none of one example, which has no negatives
            groups = max(1, min(-(-len(examples) // most), len(examples) // 2))
            loss = torch.zeros(())
            for group in range(groups):  # of examples of all lengths
                rows = range(group, len(examples), groups)
                of_group = model.pair_loss(ordered[group::groups], [examples[row] for row in rows])
                loss = loss + of_group * (len(rows) / len(examples))
            return loss

        self.optimizer.zero_grad()
        together = contrastive and sum(map(model.batch_cost, batches)) <= budget
        return backward(
            forward, batches, join if contrastive else None, self.scaler.scale, together
        )

    def _forecast(self, seconds: float, done: int, total: int) -> None:
        """Log how long the training is going to take.

        Parameters
        ----------
        seconds : float
            Time that the first steps took.
        done : int
            Their cost.
        total : int
            Cost of an epoch.
        """
        epochs, unit = self.epochs - self.start_epoch, self.model.cost_unit
        size = f"{total / 1e6:.2f} M" if total >= 10_000 else f"{total}"
        minutes = epochs * total * seconds / done / 60
        self.logger.info(
            f"forecast: {epochs} epochs of {size} {unit} at {done / seconds:.0f} {unit}/s: "
            f"{minutes:.1f} minutes, {run_folders.peak_memory(self.device):.0f} MiB so far; "
            "validation and test come on top"
        )

    def ranked(self, eval_data: Any) -> Any:
        """Return the dataset whose cases `rank` ranks.

        Validation is on a fixed sample of users: it suffices to select a checkpoint, and each user
        costs decoding.
        """
        dataset = eval_data._dataset
        if part_of(dataset) == "valid":
            dataset = copy.copy(dataset)
            dataset.cases = draw(dataset.cases, self.config["valid_users"])
        return dataset

    def rank(self, eval_data, topk=0, show_progress=False, kept=None):
        """See `Harness.rank`; the model is told which cases come."""
        self.model.start_ranking(part_of(eval_data._dataset), self.selecting, kept and kept.weights)
        return super().rank(eval_data, topk, show_progress, kept)

    def _valid_epoch(self, valid_data, show_progress=False):
        self.selecting = True
        try:
            return super()._valid_epoch(valid_data, show_progress)
        finally:
            self.selecting = False
