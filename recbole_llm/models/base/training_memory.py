"""How much memory a training takes, said before it begins, and passes that fit."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ...errors import UserError
from ...language.backbones.footprint import Pass, Training, footprint, pass_peak

GIB = 2**30
# Share of the free memory that is planned with; the rest is for allocators and libraries. On a CPU
# resident memory is 0.1 to 0.7 GiB more than tensors take (docs/benchmarks.md), and a process that
# takes too much is killed without a word.
USABLE = {"cuda": 0.9, "cpu": 0.6}
# A training is not traced if by this bound it needs less than this share of the free memory.
LITTLE = 0.125
BYTES_PER_WIDTH = 300  # of a token in a layer, for each number of its hidden state
EFFICIENT = 4096  # tokens of a pass beyond which more of them hardly save time


def free_memory(device: torch.device) -> int:
    """Measure the memory of a device that this process could still use.

    Parameters
    ----------
    device : torch.device
        The device.

    Returns
    -------
    int
        Bytes; on a CPU within the limit of a container, if there is one.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        return free if limit == "max" else min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        return free


def fit_passes(model: Any, longest: int, step: int, share: float) -> None:
    """Choose passes that fit into memory, and log what they take.

    Nothing is changed where `pass_tokens` fits as it is. Otherwise activations are computed again
    in the backward pass if `checkpoint` allows it, and passes are halved until they fit.

    Parameters
    ----------
    model : BackboneModel
        The model, whose `passes` may become smaller.
    longest : int
        Tokens of the longest text.
    step : int
        Tokens of the largest training step.
    share : float
        Share of the tokens that are learned.

    Raises
    ------
    UserError
        If not even a pass of one text fits.
    """
    forecast = Forecast(model, longest, share)
    tokens = max(longest, min(model.passes.tokens, step))
    try:
        if forecast.bound(tokens) < LITTLE * forecast.free:
            logging.getLogger().info(forecast.line_of_bound(tokens))
            return
        chosen = forecast.choose(tokens)
        if not chosen:
            raise UserError(forecast.refusal(longest))
    except UserError:
        raise
    except Exception as error:  # of foreign code, which may do what a trace cannot follow
        message = " ".join(str(error).split())[:120]
        logging.getLogger().info(f"memory: not forecast ({type(error).__name__}: {message})")
        return
    if forecast.recomputes and not model.bundle.recomputes:
        model.bundle.recompute()
    if chosen < tokens:
        model.passes.tokens = chosen
    logging.getLogger().info(forecast.line(chosen))


class Forecast:
    """The memory that a model's training takes.

    Parameters
    ----------
    model : BackboneModel
        The model, with its weights on the device.
    longest : int
        Tokens of the longest text.
    share : float
        Share of the tokens that are learned.
    memory : int, optional
        Bytes of a device that has no weights yet; where None, what is free on the model's beside
        its weights.
    usable : float, optional
        Share of the free bytes that is planned with; where None, that of the model's device.

    Attributes
    ----------
    recomputes : bool
        Whether activations are computed again in the backward pass.
    usable : float
        Share of the free bytes that is planned with.
    free : int
        Bytes that are free beside the weights.
    weights, trained, moments : int
        Bytes of all weights, of the gradients, and of the optimizer.
    """

    def __init__(
        self,
        model: Any,
        longest: int,
        share: float,
        memory: int | None = None,
        usable: float | None = None,
    ):
        self.model, self.longest, self.share = model, longest, share
        self.recomputes = model.bundle.recomputes
        self.usable = usable or USABLE.get(torch.device(model.device).type, USABLE["cpu"])
        self.weights = sum(value.nbytes for value in model.parameters())
        trained = [value for value in model.parameters() if value.requires_grad]
        self.trained = sum(value.nbytes for value in trained)
        self.moments = 2 * self.trained
        if memory is None:
            self.free = free_memory(torch.device(model.device))
        else:
            self.free = memory - self.weights

    @property
    def beside(self) -> int:
        """Bytes of gradients and the optimizer."""
        return self.trained + self.moments

    def bound(self, tokens: int) -> float:
        """Bound what passes take, without a trace.

        Parameters
        ----------
        tokens : int
            Tokens of a pass.

        Returns
        -------
        float
            Bytes beside the weights.
        """
        config = self.model.bundle.core.config.get_text_config()
        layers = config.num_hidden_layers * (2 if config.is_encoder_decoder else 1)
        heads = getattr(config, "num_attention_heads", 1)
        of_token = BYTES_PER_WIDTH * config.hidden_size + 8 * heads * self.longest
        logits = 16 * self.share * config.vocab_size
        return self.beside + tokens * (layers * of_token + logits)

    def _traced(self, tokens: int) -> tuple[Any, Training, Pass]:
        """What is traced of a pass of some tokens."""
        training = replace(self.model.training_form, recomputes=self.recomputes)
        work = self.model.pass_shape(tokens, self.longest, self.share)
        return self.model.bundle.core.config, training, work

    def activations(self, tokens: int) -> tuple[int, int]:
        """Trace a pass.

        Parameters
        ----------
        tokens : int
            Tokens of the pass.

        Returns
        -------
        (int, int)
            Bytes of activations and of logits.
        """
        taken = footprint(*self._traced(tokens))
        return taken.activations, taken.logits

    def largest(self, tokens: int) -> int:
        """Halve the tokens of a pass until it fits.

        Parameters
        ----------
        tokens : int
            Tokens of a pass.

        Returns
        -------
        int
            Tokens of a pass that fits; 0 if one text does not.
        """
        room = self.usable * self.free - self.beside
        if room <= 0:
            return 0
        while True:
            if pass_peak(*self._traced(tokens)) <= room:
                return tokens
            if tokens == self.longest:
                return 0
            tokens = max(self.longest, tokens // 2)

    def choose(self, tokens: int) -> int:
        """Decide on recomputation, and on the tokens of a pass.

        Parameters
        ----------
        tokens : int
            Tokens of a pass, at most.

        Returns
        -------
        int
            Tokens of a pass; 0 if one text does not fit.
        """
        chosen = self.largest(tokens)
        may = self.model.config["checkpoint"] == "auto" and self.model.bundle.can_recompute
        if chosen < min(tokens, EFFICIENT) and may and not self.recomputes:
            self.recomputes = True
            again = self.largest(tokens)
            self.recomputes = again > chosen or not again
            chosen = max(chosen, again)
        return chosen

    def line_of_bound(self, tokens: int) -> str:
        """The line of a training that takes little."""
        return (
            f"memory: weights {readable_bytes(self.weights)}, gradients and optimizer "
            f"{readable_bytes(self.beside)}; passes of up to {tokens} tokens take little of the "
            f"{readable_bytes(self.free)} that are free"
        )

    def line(self, tokens: int) -> str:
        """The line of a training that was traced."""
        activations, logits = self.activations(tokens)
        parts = {
            "weights": self.weights,
            "gradients": self.trained,
            "optimizer": self.moments,
            "activations": activations,
            "logits": logits,
        }
        listed = " + ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items())
        how = ", computed twice (checkpoint)" if self.recomputes else ""
        return (
            f"memory: {listed} = {readable_bytes(sum(parts.values()))} in passes of up to {tokens} "
            f"tokens{how}; {readable_bytes(self.free + self.weights)} are there"
        )

    def refusal(self, longest: int) -> str:
        """Say that no pass fits, and what to turn."""
        needed = pass_peak(*self._traced(longest)) + self.beside + self.weights
        config, advice = self.model.config, ["--max_length to less"]
        is_random = config["backbone"].startswith("scratch:") and not config["init_from"]
        if config["checkpoint"] == "false" and self.model.bundle.can_recompute:
            advice.append("--checkpoint=auto")
        if is_random:  # which an adapter would leave so
            advice.append("--backbone to a smaller one")
        elif config["adapter"] != "lora":
            advice.append("--adapter=lora")
        elif config["quantize"] == "none":
            advice.append("--quantize=4bit")
        return (
            f"max_length: a pass of one text of {longest} tokens takes {readable_bytes(needed)}, "
            f"more than {self.usable:.0%} of the {readable_bytes(self.free + self.weights)} there "
            f"are; set {' or '.join(advice)}"
        )


def readable_bytes(count: float) -> str:
    """Write a number of bytes in the unit that suits it.

    Parameters
    ----------
    count : float
        Bytes.

    Returns
    -------
    str
        In GiB, MiB or KiB.
    """
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"
