"""Many adapters at once are what each of them would be alone."""

import copy
import itertools

import numpy as np
import pytest
import torch
from suites import fast_only
from transformers.models.t5.modeling_t5 import T5LayerNorm
from worlds import FRUIT, prepared, t5, write_cycle

from recbole_llm.data.cases.splits import make_split
from recbole_llm.language.backbones.stacked_lora import (
    AdapterStack,
    SharedDropoutMask,
    StackedLinear,
    StackedLoRA,
    linear_layers,
)
from recbole_llm.studies.personalization import adapter_training
from recbole_llm.studies.personalization.adapter_training import Learner, Recipe, freeze, train

SPLIT = {"temporal": [0.5, 0.3, 0.2]}
RECIPE = {
    "lora_dropout": 0.0,
    "epochs": 4,
    "patience": 9,
    "negatives": 2,
    "learning_rate": 0.01,
    "train_batch_size": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(model, tables, continue part) of users with three to seven cases to learn from."""
    folder = write_cycle(tmp_path_factory.mktemp("stacked"), users=16, length=24)
    path = folder / "cycle" / "cycle.inter"
    head, *rows = path.read_text().splitlines()
    kept = [
        row for number, row in enumerate(rows) if number % 24 < 14 + number // 24 % 9
    ]  # of unequal length
    path.write_text("\n".join([head, *kept]) + "\n")
    torch.manual_seed(0)
    backbone = str(
        t5(
            folder / "t5",
            [f"id: {number} title: {word} juice" for number, word in enumerate(FRUIT)],
            layers=2,
        )
    )
    _, model, _, _ = prepared(
        "TASTELoRA",
        folder,
        backbone=backbone,
        max_length=64,
        item_length=10,
        segments=3,
        **{"eval_args.split": SPLIT},
    )
    return model, make_split(model.interactions, SPLIT, "continue")


def learners_of(world, count=16):
    model, part = world
    return [
        Learner(
            str(token), part.train[part.train.user == user], part.valid[part.valid.user == user]
        )
        for user, token in enumerate(model.interactions.users[:count])
    ]


def frozen_of(world, dtype=torch.float32):
    model, part = world
    model = copy.deepcopy(model)
    model.bundle.model = model.backbone = model.backbone.to(dtype)
    return freeze(model, part.train, part.valid)


def layer_of(count=3, dropout=0.0):
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 7).double().requires_grad_(False)
    a, b = (
        torch.nn.Parameter(torch.randn(count, *shape, dtype=torch.float64))
        for shape in ((2, 5), (7, 2))
    )
    return base, a, b, StackedLinear(base, a, b, 0.5, SharedDropoutMask(dropout), torch.float64)


def test_a_layer_is_its_base_and_each_shares_adapter():
    base, a, b, layer = layer_of()
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    for row in range(6):
        assert torch.allclose(
            found[row], base(x[row]) + 0.5 * x[row] @ a[row // 2].T @ b[row // 2].T
        )
    assert torch.autograd.gradcheck(
        lambda x, a, b: StackedLoRA.apply(x, base.weight, base.bias, a, b, 0.5, None), (x, a, b)
    )
    keep = (torch.rand(6, 4, 5, dtype=torch.float64) > 0.4) * 1.7
    assert torch.autograd.gradcheck(
        lambda x, a, b: StackedLoRA.apply(x, base.weight, base.bias, a, b, 0.5, keep), (x, a, b)
    )


def test_dropout_is_of_the_update_alone_at_its_rate():
    base, a, b, layer = layer_of(dropout=0.25)
    x = torch.randn(300, 40, 5, dtype=torch.float64)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    exact = layer.eval()(x)
    assert torch.allclose(exact, layer_of()[3](x))
    assert float((first - exact).mean()) == pytest.approx(0, abs=0.05)  # of the size of 5
    masks = torch.stack([layer.noise.mask(x, torch.float64) for _ in range(20)])
    assert set(masks.unique().tolist()) == {0.0, 1 / 0.75} and float(
        (masks == 0).double().mean()
    ) == pytest.approx(0.25, abs=0.01)
    together = ((masks[:-1] == 0) & (masks[1:] == 0)).double().mean()
    assert float(together) == pytest.approx(
        0.0625, abs=0.01
    )  # one layer's mask tells nothing of the next's


def names_of(stacks):
    return [learner.name for learner in itertools.chain.from_iterable(stacks)]


def adapted(frozen, learner, recipe):
    """A copy of the frozen model with PEFT's adapter, which starts from the values of a stack."""
    from peft import LoraConfig

    model = copy.deepcopy(frozen.bundle.model)
    model.add_adapter(
        LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
    )
    model.to(frozen.bundle.model.dtype)
    start = AdapterStack.initialized(
        frozen.bundle.model,
        [adapter_training._seed(recipe, learner.name, 1)],
        rank=recipe.lora_rank,
        alpha=recipe.lora_alpha,
        dropout=0.0,
    )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.a.items():
            parameters[f"{name}.lora_A.default.weight"].copy_(value[0])
    return model


def vector_of(model, tokens):
    """The decoder's state over the segments, each of which the encoder reads alone."""
    parts = [
        torch.from_numpy(tokens.ids[tokens.roles[0] == number])[None]
        for number in range(1, tokens.roles[0].max() + 1)
    ]
    states = torch.cat([model.encoder(input_ids=part).last_hidden_state for part in parts], dim=1)
    return model.decoder(
        input_ids=torch.tensor([[model.config.decoder_start_token_id]]),
        encoder_hidden_states=states,
    ).last_hidden_state[0, 0]


def loss_of(model, groups, shared):
    """Mean cross-entropy of the groups' targets; if `shared`, among the items of all groups."""
    items, total = [], 0.0
    for group in groups:
        for text, tokens in zip(group.texts, group[1:], strict=True):
            items.append((text, vector_of(model, tokens)))
    for number, group in enumerate(groups):
        user, own = vector_of(model, group[0]), number * len(group.texts)
        among = range(len(items)) if shared else range(own, own + len(group.texts))
        logits = [
            user @ items[one][1] for one in among if one == own or items[one][0] != items[own][0]
        ]
        total = total + torch.stack(logits).logsumexp(dim=0) - user @ items[own][1]
    return total / len(groups)


def alone(frozen, learner, recipe):
    """Oracle: PEFT and torch's AdamW train one user's adapter, text by text.

    Returns the adapter of the best validation, and the validation losses.
    """
    model, rng = adapted(frozen, learner, recipe), adapter_training._rng
    parameters = dict(model.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )

    def state():
        return {
            name: parameter.detach().clone()
            for name, parameter in parameters.items()
            if "lora_" in name
        }

    checks = adapter_training.choices(
        frozen, learner.valid, learner, recipe, rng(recipe, learner.name, 2)
    )
    with torch.no_grad():
        losses = [float(loss_of(model, checks, False))]
    best = state()
    for epoch in range(recipe.epochs):
        examples = adapter_training.choices(
            frozen, learner.train, learner, recipe, rng(recipe, learner.name, 3, epoch)
        )
        steps = adapter_training.shuffled_steps(
            [sum(map(len, group)) for group in examples],
            recipe.train_batch_size,
            rng(recipe, learner.name, 4, epoch),
        )
        for number, rows in enumerate(steps):
            done = (epoch + (number + 1) / len(steps)) / recipe.epochs
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (
                done / 0.1 if done < 0.1 else 0.55 + 0.45 * np.cos(np.pi * (done - 0.1) / 0.9)
            )
            optimizer.zero_grad()
            loss_of(model, [examples[row] for row in rows], True).backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.max_norm)
            optimizer.step()
        with torch.no_grad():
            now = float(loss_of(model, checks, False))
        if now < min(losses):
            best = state()
        losses.append(now)
        if len(losses) - 1 - int(np.argmin(losses)) > recipe.patience:
            break
    return best, losses


def norm(self, x):
    """T5's normalisation in the model's own type, where transformers' own is float32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.parametrize("count", fast_only([3], [3, 16]))
def test_users_together_are_each_of_them_alone(world, monkeypatch, count):
    monkeypatch.setattr(T5LayerNorm, "forward", norm)
    frozen, recipe, learners = (
        frozen_of(world, torch.float64),
        Recipe(**RECIPE | {"patience": 0, "lora_rank": 4}),
        learners_of(world, count),
    )
    assert len({len(one.train) for one in learners}) > 1
    stacks = adapter_training.together(learners, recipe.train_batch_size, 16)
    assert (
        sorted(names_of(stacks)) == sorted(one.name for one in learners)
        and max(map(len, stacks)) > 1
    )
    stopped = set()
    for own in stacks:
        found = train(frozen, own, recipe)
        for number, learner in enumerate(own):
            expected, losses = alone(frozen, learner, recipe)
            assert found.losses[number] == pytest.approx(losses, rel=1e-9)
            stopped.add(len(losses))
            for name in found.stack.a:
                for kind, value in (
                    ("A", found.stack.a[name][number]),
                    ("B", found.stack.b[name][number]),
                ):
                    assert (
                        value - expected[f"{name}.lora_{kind}.default.weight"]
                    ).abs().max() <= 1e-8
    assert len(stopped) > 1


def test_one_user_of_long_steps_does_not_keep_the_others_apart(world):
    """The budget is eight plain steps; one user's step is as large as the budget.

    Fifteen users are in two stacks, and that one is alone.
    """
    cases = world[1].train
    learners = [Learner(f"user {user}", cases[:1], cases[:1]) for user in range(16)]
    tokens = [100] * 16
    tokens[3] = 800
    stacks = adapter_training.together(learners, 4, 16, tokens, 800)
    assert [len(own) for own in stacks] == [8, 7, 1] and stacks[2] == [learners[3]]
    assert [len(own) for own in adapter_training.together(learners, 4, 6, tokens, 800)] == [
        6,
        6,
        3,
        1,
    ]
    assert [len(own) for own in adapter_training.together(learners, 4, 16, tokens, 50)] == [1] * 16
    assert [len(own) for own in adapter_training.together(learners, 4, 16)] == [16]
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 300, 16).tolist()
    size = {learner.name: own for learner, own in zip(learners, tokens)}
    stacks = adapter_training.together(learners, 4, 16, tokens, 900)
    assert sorted(names_of(stacks)) == sorted(size)
    for own in stacks:
        assert len(own) == 1 or len(own) * max(size[one.name] for one in own) <= 900
    assert len(stacks) < 16 * max(tokens) / 900 + 1


def test_peft_loads_a_saved_adapter(world, tmp_path):
    from peft import PeftModel

    frozen, recipe = frozen_of(world), Recipe(**RECIPE)
    learners = adapter_training.together(learners_of(world), 3, 4)[0]
    stack = train(frozen, learners, recipe).stack
    texts = [[frozen.items[0], frozen.histories[int(one.train.end[0])]] for one in learners]
    with stack.installed_on(frozen.bundle.model), torch.no_grad():
        ours = adapter_training.stacked_vectors(frozen.bundle, texts, 4096)
    for number in range(len(learners)):
        stack.save(number, tmp_path / str(number), "run:base")
        bundle = copy.copy(frozen.bundle)
        bundle.model = PeftModel.from_pretrained(
            copy.deepcopy(frozen.bundle.model), tmp_path / str(number)
        ).base_model.model.eval()
        with torch.no_grad():
            theirs = adapter_training.stacked_vectors(bundle, texts[number : number + 1], 4096)
        assert torch.allclose(ours[number], theirs[0], atol=1e-5)
    plain = linear_layers(frozen.bundle.model)
    assert not any(
        isinstance(layer, StackedLinear) for layer in frozen.bundle.model.modules()
    ) and len(plain) == len(stack.a)


def test_in_float32_vectors_and_ranks_agree(world):
    frozen, recipe = frozen_of(world), Recipe(**RECIPE | {"learning_rate": 0.001, "epochs": 2})
    own = max(adapter_training.together(learners_of(world, 8), recipe.train_batch_size, 6), key=len)
    together = train(frozen, own, recipe).stack
    for number, learner in enumerate(own):
        single = train(frozen, [learner], recipe).stack
        texts = [[*frozen.items, *(frozen.histories[int(end)] for end in learner.valid.end)]]
        vectors = []
        for stack in (together[[number]], single):
            with stack.installed_on(frozen.bundle.model), torch.no_grad():
                vectors.append(adapter_training.stacked_vectors(frozen.bundle, texts, 4096)[0])
        assert (vectors[0] - vectors[1]).abs().max() <= 1e-5
        scores = [one[-1] @ one[:-1].T for one in vectors]
        assert torch.equal(scores[0].argsort(), scores[1].argsort())


def test_adapters_rank_through_the_evaluation_loop_as_the_model_would(world):
    """Untrained adapters rank as the frozen model does.

    With B set, they rank as the model with PEFT's adapter does.
    """
    from recbole_llm.evaluation.loop import catalogue_scores
    from recbole_llm.studies.personalization.ranking import rank

    model, part = world
    frozen, recipe = (
        freeze(copy.deepcopy(model), part.train, part.valid, part.test),
        Recipe(**RECIPE),
    )
    users = range(4)
    tests = [part.test[part.test.user == user] for user in users]
    assert len({len(cases) for cases in tests}) > 1
    stack = AdapterStack.initialized(
        frozen.bundle.model, [[user] for user in users], rank=4, alpha=8, dropout=0.0
    )
    for number, cases in enumerate(tests):
        scores = catalogue_scores(model.eval(), model.dataset, cases)
        own = scores.gather(
            1, torch.from_numpy(model.interactions.item[cases.end].astype(np.int64))[:, None]
        )
        table = rank(frozen, stack, tests, recipe)[number]
        assert (
            table.above.tolist() == (scores > own).sum(dim=1).tolist()
            and table.tied.tolist() == ((scores == own).sum(dim=1) - 1).tolist()
        )
        assert table.n_candidates.tolist() == [len(model.interactions.items)] * len(cases)
        assert (
            table.target.tolist()
            == model.interactions.items[model.interactions.item[cases.end]].tolist()
        )
    torch.manual_seed(0)
    for value in stack.b.values():
        value.data.normal_(std=0.1)
    changed = rank(frozen, stack, tests, recipe)
    assert any(
        (one.above != other.above).any()
        for one, other in zip(
            changed, rank(frozen, stack[[1, 0, 3, 2]], tests, recipe), strict=True
        )
    )
    for number, cases in enumerate(tests):
        (single,) = rank(frozen, stack[[number]], [cases], recipe)
        assert single.above.tolist() == changed[number].above.tolist()


def test_a_units_files_are_adapters_ranks_and_a_record_whole_or_not_at_all(world, tmp_path):
    import json

    from recbole_llm.evaluation.ranks import RankTable
    from recbole_llm.studies.personalization.work_units import Unit, done, keep, unit_folder, work

    model, part = world
    frozen, learners = (
        freeze(copy.deepcopy(model), part.train, part.valid, part.test),
        learners_of(world, 5),
    )
    learners = [Learner(f"a/{one.name} é", one.train, one.valid) for one in learners]
    tests = [part.test[part.test.user == user] for user in range(5)]
    unit = Unit(
        "users 1/2", learners, tests, Recipe(**RECIPE | {"epochs": 2}), stack=2, base="run:base"
    )
    files = work(frozen, unit)
    assert not done(tmp_path, unit.name)
    keep(tmp_path, unit.name, files)
    folder = unit_folder(tmp_path, unit.name)
    assert done(tmp_path, unit.name) and [path.name for path in (tmp_path / "units").iterdir()] == [
        folder.name
    ]
    assert len(list((folder / "adapters").iterdir())) == 5 and all(
        (path / "adapter_config.json").is_file() for path in (folder / "adapters").iterdir()
    )
    record = json.loads((folder / "unit.json").read_text())
    assert record["losses"].keys() == {one.name for one in learners} and record["samples"][
        learners[0].name
    ] == len(learners[0].train)
    table = RankTable.load(folder / "ranks.npz")
    assert sorted(table.user) == sorted(
        np.concatenate([model.interactions.users[cases.user] for cases in tests])
    )
    again = work(frozen, unit)
    assert {
        path: content for path, content in again.items() if path.endswith((".npz", ".safetensors"))
    }.items() <= files.items()
