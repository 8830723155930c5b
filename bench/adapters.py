"""An adapter for each of many users: stacks of K adapters against PEFT, one user at a time.

python bench/adapters.py [--size=base]
"""

import tempfile
from functools import partial
from pathlib import Path

from common import arguments, device, finish, median_seconds, number_tokenizer, peak

# training cases of a user, and tokens of a history and of an item, as in Games-6k with one segment
# of 128 tokens
CASES, HISTORY, ITEM = 3, 104, 14
ITEMS = 2000


class World:
    """Users with random histories, and a frozen model of random weights."""

    def __init__(self, size: str, users: int):
        import numpy as np
        import torch

        from recbole_llm.language.backbones.encoder_decoder import FusionBackbone
        from recbole_llm.studies.personalization.adapter_training import Frozen

        torch.manual_seed(0)
        self.rng = np.random.default_rng(0)
        self.tokenizer = number_tokenizer(2000, 3, 1000)
        self.bundle = FusionBackbone.from_scratch(size, self.tokenizer, 0)
        self.bundle.model.to(device()).requires_grad_(False)
        # interactions of a user: one without a history, the training cases and a test case
        length = CASES + 2
        histories = {}
        for user in range(users):
            for row in range(1, length):
                histories[user * length + row] = self._text(HISTORY)
        items = [self._text(ITEM) for _ in range(ITEMS)]
        events = self.rng.integers(ITEMS, size=users * length)
        numbers = np.arange(ITEMS)
        self.frozen = Frozen(self.bundle, None, items, events, numbers, numbers, histories)
        self.learners = [self._learner(user, length) for user in range(users)]

    def _text(self, length: int):
        import numpy as np

        from recbole_llm.language.tokens.batches import Tokens

        size = max(2, int(self.rng.normal(length, length / 5)))
        ids = self.rng.integers(5, len(self.tokenizer), size=size)
        roles = np.stack([np.ones(size, dtype=np.int64), np.arange(size)])
        return Tokens(ids, np.zeros(size, dtype=bool), size, 0, 0, roles=roles)

    def _learner(self, user: int, length: int):
        from recbole_llm.studies.personalization.adapter_training import Learner

        train = self._cases(user, length, range(1, length - 1))
        return Learner(f"u{user}", train, self._cases(user, length, [length - 1]))

    def _cases(self, user: int, length: int, rows):
        import numpy as np

        from recbole_llm.contracts.cases import Cases

        end = user * length + np.array(rows)
        return Cases(np.full(len(end), user), np.full(len(end), user * length), end)


def stacked(world: World, count: int, recipe, folder: Path) -> None:
    """Train the adapters of `count` users at a time."""
    from recbole_llm.studies.personalization import adapter_training

    for begin in range(0, len(world.learners), count):
        learners = world.learners[begin : begin + count]
        trained = adapter_training.train(world.frozen, learners, recipe)
        for number, learner in enumerate(learners):
            trained.stack.save(number, folder / learner.name, "bench")


def one_by_one(world: World, count: int, recipe, folder: Path) -> None:
    """Train the adapters of `count` users by PEFT."""
    for learner in world.learners[:count]:
        _train_by_peft(world, learner, recipe, folder)


def _train_by_peft(world: World, learner, recipe, folder: Path) -> None:
    import numpy as np
    import torch
    from peft import LoraConfig

    from recbole_llm.studies.personalization import adapter_training

    frozen, bundle, model = world.frozen, world.bundle, world.bundle.model
    lora = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
    )
    model.add_adapter(lora)
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(
        trained, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )

    def choices(cases, seed):
        rng = np.random.default_rng(seed)
        return [adapter_training.choices(frozen, cases, learner, recipe, rng)]

    valid = choices(learner.valid, 0)

    def validate():
        model.eval()
        with torch.no_grad():
            return float(adapter_training.step_losses(bundle, valid, recipe, alone=True))

    validate()
    for epoch in range(recipe.epochs):
        model.train()
        optimizer.zero_grad()
        batch = choices(learner.train, epoch)
        adapter_training.step_losses(bundle, batch, recipe).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.max_norm)
        optimizer.step()
        validate()
    model.save_pretrained(folder / learner.name)
    model.delete_adapter("default")


def memory(world: World, count: int) -> float:
    """Peak memory in MiB, of the GPU if there is one, after training `count` users at a time."""
    import torch

    from recbole_llm.studies.personalization import adapter_training

    recipe = adapter_training.Recipe(epochs=1)
    adapter_training.train(world.frozen, world.learners[:count], recipe)
    return torch.cuda.max_memory_allocated() / 2**20 if device() == "cuda" else peak()


def compare(world: World, alone: int, recipe, repeats: int) -> list[dict]:
    """The figures of each size of a stack, against PEFT with `alone` users."""
    users = len(world.learners)
    sizes = [count for count in (1, 8, 64) if count <= users]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {0: partial(one_by_one, world, alone, recipe, folder)}
        for count in sizes:
            sides[count] = partial(stacked, world, count, recipe, folder)
        seconds = median_seconds(sides, repeats)
    rows = []
    for count in sizes:
        row = {
            "users_stacked": count,
            "precision": recipe.precision,
            "peft_users_per_hour": round(3600 * alone / seconds[0]),
            "ours_users_per_hour": round(3600 * users / seconds[count]),
            "ratio": round(seconds[0] / alone / (seconds[count] / users), 2),
        }
        print(row)
        rows.append(row)
    return rows


def main() -> None:
    args = arguments(__doc__, size="small", users=64, alone=8, epochs=5, repeats=3)
    import recbole_llm  # noqa: F401
    from recbole_llm.studies.personalization.adapter_training import Recipe

    users, alone, epochs, repeats = args.users, args.alone, args.epochs, args.repeats
    if args.small:
        users, alone, epochs, repeats = 4, 2, 1, 1
    world = World("tiny" if args.small else args.size, users)
    most = min(64, users)
    one_user = memory(world, 1)
    per_user = round((memory(world, most) - one_user) / (most - 1), 1)
    print({"memory_mib_per_extra_user": per_user})
    rows = []
    for precision in ("fp32", "bf16"):
        recipe = Recipe(epochs=epochs, patience=epochs, precision=precision)
        rows += compare(world, alone, recipe, repeats)
    ratio = rows[-1]["ratio"]
    finish(bench="adapters", ratio=ratio, memory_mib_per_extra_user=per_user, rows=rows)


if __name__ == "__main__":
    main()
