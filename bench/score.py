"""Candidates of a case: one forward pass for each against one for all.

    python bench/score.py [--size=base]

The pass for all reads what the candidates share once. A case has 21 candidates to judge, or 5 to
train on.
"""

from common import arguments, device, finish, median_seconds, number_tokenizer

# tokens before the candidates, and of a candidate
LENGTHS = {"Amazon-M2": (600, 140), "MIND": (350, 45)}


class Judge:
    """A language model of random weights that gives candidates the probability of Yes."""

    def __init__(self, size):
        from recbole_llm.language.backbones.scratch import causal_model

        self.tokenizer = number_tokenizer(2000, 3, 1000)
        self.model = causal_model(size, self.tokenizer, 1024).eval().to(device())
        self.head = self.model.get_output_embeddings().weight[2:4]

    def probability(self, states):
        import torch

        yes, no = (states.float() @ self.head.float().T).unbind(dim=-1)
        return torch.sigmoid(yes - no)

    def one_by_one(self, prefix, suffixes):
        """Read each candidate with what comes before it."""
        import torch

        probabilities = []
        for suffix in suffixes:
            ids = torch.cat([prefix, suffix])[None]
            output = self.model.base_model(ids, use_cache=False)
            probabilities.append(self.probability(output.last_hidden_state[0, -1]))
        return torch.stack(probabilities)

    def together(self, prefix, suffixes):
        """Read all candidates in one pass."""
        import torch

        from recbole_llm.language.decoding.shared_candidates import read

        sizes = torch.tensor([len(prefix), *map(len, suffixes)])
        part = torch.arange(1, 1 + len(sizes)).repeat_interleave(sizes)
        places = [len(prefix) + torch.arange(len(suffix)) for suffix in suffixes]
        position = torch.cat([torch.arange(len(prefix)), *places])
        ids = torch.cat([prefix, *suffixes])[None]
        states = read(self.model, ids, part[None].to(device()), position[None].to(device()))[0]
        return self.probability(states[sizes.cumsum(0)[1:] - 1])


def over_prompts(side, prompts, trains):
    """A function that scores all prompts, and computes gradients if `trains`."""
    import torch

    def run():
        results = []
        for prompt in prompts:
            probabilities = side(*prompt)
            if trains:
                probabilities.sum().backward()
            results.append(probabilities.detach())
        return torch.cat(results)

    return run


def compare(judge, prompts, trains, precision, repeats):
    """Seconds of both sides, and the largest difference of their probabilities."""
    import torch

    sides = {
        "one_by_one": over_prompts(judge.one_by_one, prompts, trains),
        "ours": over_prompts(judge.together, prompts, trains),
    }
    autocast = torch.autocast(device(), torch.bfloat16, enabled=precision == "bf16")
    with torch.set_grad_enabled(trains), autocast:
        difference = float((sides["one_by_one"]() - sides["ours"]()).abs().max())
        return median_seconds(sides, repeats), difference


def main() -> None:
    args = arguments(__doc__, size="small", candidates=21, learned=5, cases=4, repeats=3)
    import numpy as np
    import torch

    import recbole_llm  # noqa: F401
    from recbole_llm.language.passes import keep_freed_memory

    keep_freed_memory()  # as every run does
    torch.manual_seed(0)
    judge = Judge("tiny" if args.small else args.size)
    rng = np.random.default_rng(0)
    cases, repeats = (1, 1) if args.small else (args.cases, args.repeats)
    rows = []
    for kind, count in (("judging", args.candidates), ("training", args.learned)):
        for data, (shared, own) in LENGTHS.items():
            prompts = []
            for _ in range(cases):
                numbers = rng.integers(5, len(judge.tokenizer), size=shared + count * own)
                ids = torch.from_numpy(numbers).to(device())
                prompts.append((ids[:shared], list(ids[shared:].split(own))))
            for precision in ("fp32", "bf16"):
                trains = kind == "training"
                seconds, difference = compare(judge, prompts, trains, precision, repeats)
                row = {
                    "what": kind,
                    "data": data,
                    "shared": shared,
                    "candidate": own,
                    "candidates": count,
                    "width": judge.model.config.hidden_size,
                    "precision": precision,
                    "one_by_one_per_s": round(count * cases / seconds["one_by_one"], 1),
                    "ours_per_s": round(count * cases / seconds["ours"], 1),
                    "ratio": round(seconds["one_by_one"] / seconds["ours"], 2),
                    "probability_difference": difference,
                }
                print(row)
                rows.append(row)
    ratio = min(row["ratio"] for row in rows if row["what"] == "judging")
    finish(bench="score", ratio=ratio, rows=rows)


if __name__ == "__main__":
    main()
