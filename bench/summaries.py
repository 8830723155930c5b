"""Texts of unequal lengths behind many prompts: transformers' generate in batches, against slots.

    python bench/summaries.py

Width 256, 4 layers, random weights. A text ends after `mean` tokens on average, and after `new` at
most, as summaries do: each of some tokens ends it. Both sides continue `slots` texts at once. A
batch of generate, padded on the left, goes on until its longest text has ended; a slot takes the
next prompt. Rates are tokens of texts a second, since each side draws texts of its own.
"""

from collections.abc import Callable
from typing import Any

from common import arguments, device, finish, median, timed
from generate import VOCABULARY, backbone_without_end


def main() -> None:
    args = arguments(__doc__, prompts=96, slots=16, mean=40, new=160, repeats=3)
    import numpy as np
    import torch

    import recbole_llm  # noqa: F401
    from recbole_llm.language.decoding.continuous import continue_each
    from recbole_llm.language.decoding.sampling import stream_key

    torch.manual_seed(0)
    if args.small:
        args.prompts, args.new, args.slots, args.repeats = 8, 8, 4, 1
    backbone, rng = backbone_without_end(), np.random.default_rng(0)
    prompts = [
        rng.integers(2, VOCABULARY, size=size) for size in rng.integers(150, 350, args.prompts)
    ]
    keys = np.array([stream_key(0, str(number)) for number in range(args.prompts)])
    ends = rng.permutation(np.arange(2, VOCABULARY))[: VOCABULARY // args.mean].tolist()
    pad = backbone.tokenizer.pad_token_id

    def theirs() -> int:
        count = 0
        for first in range(0, len(prompts), args.slots):
            batch = prompts[first : first + args.slots]
            longest = max(map(len, batch))
            ids = torch.full((len(batch), longest), pad)
            for row, prompt in enumerate(batch):
                ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            ids = ids.to(device())
            written = backbone.model.generate(
                ids,
                attention_mask=(ids != pad).long(),
                do_sample=True,
                top_k=0,
                max_new_tokens=args.new,
                eos_token_id=ends,
                pad_token_id=pad,
            )
            count += int((written[:, longest:] != pad).sum())
        return count

    def ours() -> int:
        lengths: list[int] = []

        def take(number: int, ids: Any, ended: bool) -> None:
            lengths.append(len(ids) + ended)

        settings = {"slots": args.slots, "temperature": 1.0, "max_new": args.new, "ends": ends}
        continue_each(backbone, prompts, keys, take, **settings)
        return sum(lengths)

    sides: dict[str, Callable[[], int]] = {"generate": theirs, "slots": ours}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats + 1):
        for name, side in sides.items():
            seconds, count = timed(side)
            rates[name].append(count / seconds)
    report({name: median(values[1:]) for name, values in rates.items()})


def report(rates: dict[str, float]) -> None:
    """Print the last line."""
    row = {f"{name}_tokens_s": round(rate, 1) for name, rate in rates.items()}
    row["ratio"] = round(rates["slots"] / rates["generate"], 2)
    finish(bench="summaries", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
