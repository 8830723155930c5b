"""An adapter for each of many users: stacked K at a time against PEFT, one user after another. python bench/adapters.py [--size=base]"""

import tempfile
from functools import partial
from pathlib import Path

from common import arguments, device, finish, peak, timed

CASES, HISTORY, ITEM = (
    3,
    104,
    14,
)  # cases of a user to learn from, and tokens: what Games-6k has with one segment of 128


def main():
    args = arguments(__doc__, size="small", users=64, alone=8, epochs=5, repeats=3)
    import numpy as np
    import torch
    from peft import LoraConfig

    import recbole_llm  # noqa: F401
    from recbole_llm.contracts.cases import Cases
    from recbole_llm.language.backbones.encoder_decoder import FusionBackbone
    from recbole_llm.language.backbones.scratch import train_tokenizer
    from recbole_llm.language.tokens.batches import Tokens
    from recbole_llm.studies.personalization import adapter_training

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    users, alone, epochs, repeats = (
        (4, 2, 1, 1) if args.small else (args.users, args.alone, args.epochs, args.repeats)
    )
    tokenizer = train_tokenizer(
        (f"{number} {number * 7919}" for number in range(2000) for _ in range(3)), 1000
    )
    bundle = FusionBackbone.from_scratch("tiny" if args.small else args.size, tokenizer, 0)
    bundle.model.to(device()).requires_grad_(False)

    def text(length):
        ids = rng.integers(5, len(tokenizer), size=max(2, int(rng.normal(length, length / 5))))
        return Tokens(
            ids,
            np.zeros(len(ids), dtype=bool),
            len(ids),
            0,
            0,
            roles=np.stack([np.ones(len(ids), dtype=np.int64), np.arange(len(ids))]),
        )

    own = CASES + 1
    histories = {
        user * (own + 1) + row: text(HISTORY) for user in range(users) for row in range(1, own + 1)
    }
    items, events = [text(ITEM) for _ in range(2000)], rng.integers(2000, size=users * (own + 1))
    frozen = adapter_training.Frozen(
        bundle, None, items, events, np.arange(2000), np.arange(2000), histories
    )

    def cases(user, rows):
        end = user * (own + 1) + np.array(rows)
        return Cases(np.full(len(end), user), np.full(len(end), user * (own + 1)), end)

    learners = [
        adapter_training.Learner(f"u{user}", cases(user, range(1, own)), cases(user, [own]))
        for user in range(users)
    ]

    def stacked(count, recipe, folder):
        for begin in range(0, users, count):
            some = learners[begin : begin + count]
            found = adapter_training.train(frozen, some, recipe)
            for number, learner in enumerate(some):
                found.stack.save(number, folder / learner.name, "bench")

    def one_by_one(recipe, folder):
        model, sizes = (
            bundle.model,
            {
                "r": recipe.lora_rank,
                "lora_alpha": recipe.lora_alpha,
                "lora_dropout": recipe.lora_dropout,
            },
        )
        for learner in learners[:alone]:
            model.add_adapter(LoraConfig(**sizes, target_modules="all-linear"))
            trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
            optimizer = torch.optim.AdamW(
                trained,
                lr=recipe.learning_rate,
                betas=(0.9, 0.95),
                weight_decay=recipe.weight_decay,
            )
            check = adapter_training.choices(
                frozen, learner.valid, learner, recipe, np.random.default_rng(0)
            )

            def validate(check=check):
                model.eval()
                with torch.no_grad():
                    return float(adapter_training.step_losses(bundle, [check], recipe, alone=True))

            validate()
            for epoch in range(recipe.epochs):
                model.train()
                optimizer.zero_grad()
                adapter_training.step_losses(
                    bundle,
                    [
                        adapter_training.choices(
                            frozen, learner.train, learner, recipe, np.random.default_rng(epoch)
                        )
                    ],
                    recipe,
                ).sum().backward()
                torch.nn.utils.clip_grad_norm_(trained, recipe.max_norm)
                optimizer.step()
                validate()
            model.save_pretrained(folder / learner.name)
            model.delete_adapter("default")

    def memory(count):
        """MiB held at most, on the GPU if there is one, once so many users have been trained at once."""
        adapter_training.train(frozen, learners[:count], adapter_training.Recipe(epochs=1))
        return torch.cuda.max_memory_allocated() / 2**20 if device() == "cuda" else peak()

    rows, most = [], min(64, users)
    alone_mib = memory(1)
    per_user = (memory(most) - alone_mib) / (most - 1)
    print({"memory_mib_per_extra_user": round(per_user, 1)})
    for precision in ("fp32", "bf16"):
        recipe = adapter_training.Recipe(epochs=epochs, patience=epochs, precision=precision)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sizes = [count for count in (1, 8, 64) if count <= users]
            sides = [one_by_one, *(partial(stacked, count) for count in sizes)]
            runs = [[timed(side, recipe, folder)[0] for side in sides] for _ in range(repeats)]
        theirs, *ours = (sorted(column)[len(runs) // 2] for column in zip(*runs, strict=True))
        for count, seconds in zip(sizes, ours, strict=True):
            rows.append({"users_stacked": count, "precision": precision, "peft_users_per_hour": round(3600 * alone / theirs),
                         "ours_users_per_hour": round(3600 * users / seconds), "ratio": round(theirs / alone / (seconds / users), 2)})  # fmt: skip
            print(rows[-1])
    finish(
        bench="adapters",
        ratio=rows[-1]["ratio"],
        memory_mib_per_extra_user=round(per_user, 1),
        rows=rows,
    )


if __name__ == "__main__":
    main()
