"""What a run is going to take, reckoned before its language models are loaded."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch

from ..contracts.cases import Cases
from ..contracts.evaluation_mode import EvaluationMode
from ..contracts.models import ContrastiveTrainable
from ..data.cases.splits import draw
from ..errors import UserError
from ..language.backbones.precision import KINDS, in_software
from ..language.passes import PassBudget
from ..language.summaries.local import LocalEngine
from ..language.summaries.summarizer import Summarizer
from ..language.tokens.batches import by_length, padded_size, shuffled_steps
from ..models.base.backbone_model import BackboneModel
from ..models.base.generative_model import GenerativeModel
from ..models.base.pointwise_model import CandidateJudge
from ..models.base.training_memory import GIB, Forecast, readable_bytes
from ..runs.checks import check
from ..runs.commands import stages_of
from ..runs.runner import Runner
from ..runs.spec import RunSpec, describe
from ..settings.layers import asks_server, loads_summarizer
from ..training.corpora import Corpus
from .hardware import REACHED, Hardware, ModelCost, find_gpu, measure_device

ENCODED_CASES = 200  # so many prompts tell the mean length of all
ENCODED_EXAMPLES = 20_000  # so many examples of an epoch tell the tokens of all
ENCODED_ITEMS = 2_000  # so many items tell the mean length of their texts
PADDED_STEPS = 20  # so many steps tell how much of their passes is padding


def plan(settings: dict[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Reckon tokens, steps, memory, time and prices of a run.

    Parameters
    ----------
    settings : dict
        The settings of the run.
    options : mapping
        `hardware`, `price_in` and `price_out`, see PlanSettings.

    Returns
    -------
    list of str
        Lines to print.

    Raises
    ------
    UserError
        For unknown hardware, settings that cannot work, and models without a language model.
    """
    if "backbone" not in settings:
        raise UserError(
            f"plan: {settings['model']} has no language model of its own, and takes little; "
            "expected a model with the setting `backbone`"
        )
    if (options["price_in"] is None) != (options["price_out"] is None):
        raise UserError("price_in, price_out: expected both prices, found one; give the other too")
    stages = stages_of(settings)
    precisions = {stage["precision"] for stage in stages}
    hardware = None
    if options["hardware"]:
        hardware = find_gpu(options["hardware"])
        for precision in precisions:
            hardware.rate(precision)
        # what the GPU of this machine lacks does not matter
        stages = [stage | {"use_gpu": False} for stage in stages]
    lines: list[str] = []
    for number, stage in enumerate(stages):
        spec = describe(stage)
        check(spec, first=not number)
        hardware = hardware or measure_device(spec.config["device"], precisions)
        if name := stage.get("stage"):
            lines.append(f"stage {name}")
        lines += _Plan(spec, hardware, options).lines()
    return lines


class _Plan:
    """The plan of one stage."""

    def __init__(self, spec: RunSpec, hardware: Hardware, options: Mapping[str, Any]):
        self.spec, self.hardware, self.options = spec, hardware, options
        self.examples = self.encoded = 0  # of an epoch, and those of them that are looked at
        self.config = spec.config
        short = not options["hardware"] and in_software(self.config["device"], "bf16")
        if short and self.config["weights"] == "auto":
            self.config["weights"] = "float32"
        self.config["device"] = torch.device("meta")
        model, _ = Runner(spec).make_model()
        assert isinstance(model, BackboneModel)
        self.model = model
        if self.writes_summaries:
            text = " a" * self.config["summary_tokens"]
            model.summaries = lambda histories: [text] * len(histories)

    @property
    def writes_summaries(self) -> bool:
        """Whether a language model writes summaries."""
        return loads_summarizer(self.config) or asks_server(self.config)

    def lines(self) -> list[str]:
        """All lines."""
        model, config = self.model, self.config
        trained = bool(config["epochs"]) and any(p.requires_grad for p in model.parameters())
        lines = [
            f"{config['model']} on {self.spec.dataset}, {config['backbone']}, "
            f"{config['precision']}, on {self.hardware.name}"
        ]
        if self.writes_summaries:
            lines += self._summary_lines()
        if trained:
            lines += self._training_lines()
        return [*lines, *self._ranking_lines()]

    def _training_lines(self) -> list[str]:
        model, config = self.model, self.config
        pieces, sizes = self.pieces, self.sizes
        each = sizes.reshape(self.encoded, -1).sum(axis=1)
        rng = np.random.default_rng([config["seed"], 0, 1])
        batches = shuffled_steps(each, config["train_batch_size"], rng)
        steps_of_epoch = -(-self.examples // config["train_batch_size"])
        steps = config["epochs"] * steps_of_epoch
        if config["max_steps"]:
            steps = min(steps, config["max_steps"])
        share = float(sum(int(piece.learned.sum()) for piece in pieces) / sizes.sum())
        tokens_of_epoch = sizes.sum() * self.examples / len(each)
        tokens = steps * tokens_of_epoch / steps_of_epoch
        largest = max(int(each[rows].sum()) for rows in batches)
        longest = int(padded_size(sizes.max()))
        memory = int(self.hardware.memory * GIB)
        forecast = Forecast(model, longest, share, memory, self.hardware.usable)
        limit = max(longest, min(PassBudget(config["pass_tokens"]).tokens, largest))
        if config["checkpoint"] == "true":
            forecast.recomputes = True
        chosen = forecast.choose(limit)
        sample = f" in {self.encoded} examples" if self.encoded < self.examples else ""
        learned = f", {share:.1%} of them learned" if share else ""
        lines = [
            f"training: {self.examples} examples an epoch, {_count(tokens_of_epoch)} tokens (a "
            f"text: {sizes.mean():.0f} on average, at most {sizes.max()}{sample}){learned}",
            f"training: {steps} steps of {config['train_batch_size']} examples, "
            f"{_count(tokens)} tokens",
        ]
        if not chosen:
            return [*lines, forecast.refusal(longest)]
        padding, twice = self._passes(batches, chosen)
        operations = twice * self.cost.reading(sizes) + self.cost.training(
            sizes,
            adapts=config["adapter"] == "lora",
            recomputes=forecast.recomputes,
            learned=share / padding,
        )
        seconds = self._seconds(tokens * padding * operations)
        return [
            *lines,
            forecast.line(chosen),
            f"time, reckoned: training {_duration(seconds)}, at {REACHED:.0%} of "
            f"{self._rate:.3g} TFLOP/s",
        ]

    def _passes(self, batches: Sequence[np.ndarray], budget: int) -> tuple[float, float]:
        """What passes compute for each token of a text, in some of the steps.

        Tokens with the padding, and the share of them that is read twice: a contrastive step of
        several passes computes all vectors first (gradient caching).
        """
        model, each = self.model, len(self.sizes) // self.encoded
        contrastive = isinstance(model, ContrastiveTrainable) and model.contrastive
        computed = counted = twice = 0
        for examples in batches[:: -(-len(batches) // PADDED_STEPS)]:
            rows = (each * np.asarray(examples)[:, None] + np.arange(each)).ravel()
            costs = self.sizes[rows]
            passes = by_length(costs, budget, cost=model.pass_cost)
            size = 0
            for one in passes:
                size += model.batch_cost(model.collate([self.pieces[row] for row in rows[one]]))
            computed += size
            twice += size if contrastive and len(passes) > 1 and size > budget else 0
            counted += int(costs.sum())
        return computed / counted, twice / computed

    @cached_property
    def pieces(self) -> list[Any]:
        """The texts of some of an epoch's examples, each of which has equally many."""
        examples = self.model.examples(0)
        apart = max(1, -(-len(examples) // ENCODED_EXAMPLES))
        some = [examples[row] for row in range(0, len(examples), apart)]
        self.examples, self.encoded = len(examples), len(some)
        return list(chain.from_iterable(map(self.model.pieces, some)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of each of `pieces`, int64."""
        return np.array([self.model.cost(piece) for piece in self.pieces])

    @property
    def _rate(self) -> float:
        """Operations a second, in 10^12, of the run's precision."""
        return self.hardware.rate(self.config["precision"])

    @cached_property
    def cost(self) -> ModelCost:
        """Operations and bytes of the language model."""
        return ModelCost(self.model.bundle.core)

    def _seconds(self, operations: float) -> float:
        return operations / (REACHED * self._rate * 1e12)

    def _ranking_lines(self) -> list[str]:
        """What validations and the test take."""
        config, split = self.config, self.spec.split
        parts = {
            "a validation": draw(split.valid, config["valid_users"] or 0),
            "the test": draw(split.test, config["test_users"] or 0),
        }
        lines = []
        for name, cases in parts.items():
            if len(cases):
                seconds, what = self._ranking(cases, name == "a validation")
                lines.append(f"time, reckoned: {name} of {len(cases)} cases {what}: {seconds}")
        return lines

    def _ranking(self, cases: Cases, selecting: bool) -> tuple[str, str]:
        """How long a ranking takes, and what it does."""
        model, config = self.model, self.config
        some = cases[:ENCODED_CASES]
        if isinstance(model, GenerativeModel):
            lengths = np.array([len(prompt) for prompt in model.prompts(some)])
            texts = config["valid_samples" if selecting else "samples"]
            most = config["beams"] if model.constrained else texts
            written = len(cases) * most * model.longest
            seconds = self._seconds(len(cases) * lengths.mean() * self.cost.reading(lengths))
            at_once = most * min(len(cases), max(1, config["generate_rows"] // most))
            # the texts of a case read its prompt's keys and values together
            cached = lengths.mean() / most + model.longest / 2
            cached *= self.cost.cache_bytes(KINDS[config["precision"]])
            seconds += self.cost.writing_seconds(
                written, at_once, cached, config["precision"], self.hardware
            )
            return _duration(seconds), f"({most} texts each, at most {_count(written)} tokens)"
        if isinstance(model, CandidateJudge):
            prefixes = np.array([len(prefix.tokens) for prefix in model.prefixes(some)])
            suffix = np.mean([len(model.encoder.candidate_suffix(line)) for line in model.lines])
            count = self._candidates("valid" if selecting else "test")
            lengths = prefixes + round(count * float(suffix))
            seconds = self._seconds(len(cases) * lengths.mean() * self.cost.reading(prefixes))
            return _duration(seconds), f"({count} candidates each)"
        count = len(model.text.unique[0])
        seconds = len(cases) * self._reading_seconds("encode_users", some)
        return _duration(seconds + count * self._item_seconds), f"(and {count} texts of items)"

    @cached_property
    def _item_seconds(self) -> float:
        """How long the text of an item is encoded."""
        items = self.model.text.unique[0]
        return self._reading_seconds("encode_items", items[:: -(-len(items) // ENCODED_ITEMS)])

    def _reading_seconds(self, encode: str, rows: Any) -> float:
        """How long a method encodes a text of cases or items, the mean over some of them."""
        model: Any = self.model
        if not hasattr(model, "vectors"):  # a guest's own way: as long as it trains on
            return self._seconds(self.sizes.mean() * self.cost.reading(self.sizes))
        sizes: list[int] = []

        def count(texts: Sequence[Any], *_: object) -> np.ndarray:
            sizes.extend(map(model.cost, texts))
            return np.zeros((len(texts), model.bundle.width), dtype=np.float32)

        model.vectors = count
        try:
            getattr(model, encode)(rows)
        finally:
            del model.vectors
        # a model with a table of items reads all of them, whatever is asked for
        lengths = np.array(sizes)
        return self._seconds(lengths.mean() * self.cost.reading(lengths))

    def _candidates(self, part: str) -> int:
        """Candidates that a judge is asked about for each case of a part."""
        mode = EvaluationMode.of_part(self.config["eval_args"]["mode"], part)
        if mode.candidates:
            return 1 + mode.candidates
        return self.config["rerank_items"] if self.config["rerank_from"] else len(self.model.text)

    def _summary_lines(self) -> list[str]:
        """What summaries cost at most."""
        config, spec, model = self.config, self.spec, self.model
        corpus = Corpus(spec.interactions, spec.inputs.text, spec.split.train)
        cases = {
            "train": corpus.newest(config["targets"]),
            "valid": draw(spec.split.valid, config["valid_users"] or 0),
            "test": draw(spec.split.test, config["test_users"] or 0),
        }
        summarizer = Summarizer(config, model.text, logging.getLogger())
        costs = summarizer.texts.forecast(
            {
                part: map(summarizer.plan, one.histories(spec.interactions))
                for part, one in cases.items()
            }
        ).values()
        total: Counter = sum(costs, Counter())
        line = (
            f"summaries: at most {total['requests']} requests, {_count(total['read'])} tokens "
            f"read, {_count(total['written'])} written"
        )
        prices = self.options["price_in"], self.options["price_out"]
        if None not in prices:
            price = (total["read"] * prices[0] + total["written"] * prices[1]) / 1e6
            line += f"; at {prices[0]:g} and {prices[1]:g} a million: {price:.2f}"
        if not loads_summarizer(config) or not total["requests"]:
            return [line]
        engine = summarizer.texts.engine
        assert isinstance(engine, LocalEngine)
        return [line, *self._local_lines(engine.bundle.core, total)]

    def _local_lines(self, core: Any, total: Mapping[str, int]) -> list[str]:
        """What a summarizer on this device takes, for some requests and tokens."""
        config, precision = self.config, self.config["precision"]
        cost, texts = ModelCost(core), min(config["summarizer_parallel"], total["requests"])
        length = padded_size(config["summarizer_length"])
        # each step reads all slots up to the end of the longest text
        cache = length * cost.cache_bytes(KINDS[precision])
        whole = np.array([total["read"] / total["requests"]])
        seconds = self._seconds(total["read"] * cost.reading(whole))
        seconds += cost.writing_seconds(total["written"], texts, cache, precision, self.hardware)
        return [
            f"summarizer, before training: weights {readable_bytes(cost.weight_bytes)} + keys and "
            f"values {readable_bytes(texts * cache)} of {texts} texts of at most {length} tokens; "
            f"{self.hardware.memory:.1f} GiB are there",
            f"time, reckoned: summaries {_duration(seconds)} at most",
        ]


def _count(number: float) -> str:
    """A number of tokens."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
