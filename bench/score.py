"""21 candidates of a case, and 5 to learn from: one pass for each against one for all, which reads what they share once. python bench/score.py [--size=base]"""

from common import arguments, device, finish, timed

LENGTHS = {
    "Amazon-M2": (600, 140),
    "MIND": (350, 45),
}  # tokens up to the candidate, and of the candidate


def main():
    args = arguments(__doc__, size="small", candidates=21, learned=5, cases=4, repeats=3)
    import numpy as np
    import torch

    import recbole_llm  # noqa: F401
    from recbole_llm.language.backbones.scratch import causal_model, train_tokenizer
    from recbole_llm.language.decoding.shared_candidates import read

    torch.manual_seed(0)
    tokenizer = train_tokenizer(
        (f"{number} {number * 7919}" for number in range(2000) for _ in range(3)), 1000
    )
    model = causal_model("tiny" if args.small else args.size, tokenizer, 1024).eval().to(device())
    head = model.get_output_embeddings().weight[2:4]
    rng = np.random.default_rng(0)
    cases, repeats = (1, 1) if args.small else (args.cases, args.repeats)

    def odds(states):
        yes, no = (states.float() @ head.float().T).unbind(dim=-1)
        return torch.sigmoid(yes - no)

    def one_by_one(prefix, suffixes):
        return torch.stack(
            [
                odds(
                    model.base_model(
                        torch.cat([prefix, suffix])[None], use_cache=False
                    ).last_hidden_state[0, -1]
                )
                for suffix in suffixes
            ]
        )

    def together(prefix, suffixes):
        sizes = torch.tensor([len(prefix), *map(len, suffixes)])
        part = torch.arange(1, 1 + len(sizes)).repeat_interleave(sizes)
        position = torch.cat(
            [
                torch.arange(len(prefix)),
                *(len(prefix) + torch.arange(len(suffix)) for suffix in suffixes),
            ]
        )
        states = read(
            model,
            torch.cat([prefix, *suffixes])[None],
            part[None].to(device()),
            position[None].to(device()),
        )[0]
        return odds(states[sizes.cumsum(0)[1:] - 1])

    def learned(side):
        def step(prefix, suffixes):
            found = side(prefix, suffixes)
            found.sum().backward()
            return found.detach()

        return step

    rows = []
    for kind, count in (("judging", args.candidates), ("training", args.learned)):
        for data, (shared, own) in LENGTHS.items():
            prompts = [
                torch.from_numpy(rng.integers(5, len(tokenizer), size=shared + count * own)).to(
                    device()
                )
                for _ in range(cases)
            ]
            prompts = [(ids[:shared], list(ids[shared:].split(own))) for ids in prompts]
            for precision in ("fp32", "bf16"):
                both = (
                    [one_by_one, together]
                    if kind == "judging"
                    else [learned(one_by_one), learned(together)]
                )
                with (
                    torch.set_grad_enabled(kind == "training"),
                    torch.autocast(device(), torch.bfloat16, enabled=precision == "bf16"),
                ):
                    sides = [
                        lambda side=side, prompts=prompts: torch.cat(
                            [side(*prompt) for prompt in prompts]
                        )
                        for side in both
                    ]
                    differ = float((sides[0]() - sides[1]()).abs().max())
                    runs = [[timed(side)[0] for side in sides] for _ in range(repeats)]
                theirs, ours = (
                    sorted(column)[len(runs) // 2] for column in zip(*runs, strict=True)
                )
                rows.append({"what": kind, "data": data, "shared": shared, "candidate": own, "candidates": count, "width": model.config.hidden_size,
                             "precision": precision, "one_by_one_per_s": round(count * cases / theirs, 1), "ours_per_s": round(count * cases / ours, 1),
                             "ratio": round(theirs / ours, 2), "probability_difference": differ})  # fmt: skip
                print(rows[-1])
    finish(
        bench="score",
        ratio=min(row["ratio"] for row in rows if row["what"] == "judging"),
        rows=rows,
    )


if __name__ == "__main__":
    main()
