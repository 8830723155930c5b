"""Training steps of CALRec's generation loss: a plain loop that pads every batch to its longest text against ours. python bench/train.py

The same texts (the Pet sample's), model, batches and learned tokens; tokens are real ones, without padding.
"""

import tempfile

from common import arguments, finish, timed


def main():
    args = arguments(__doc__, steps=12, batch=16, repeats=3)
    import numpy as np
    import torch

    from recbole_llm.language.tokens.batches import pad
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe
    from recbole_llm.settings import layers as settings

    steps, repeats = (3, 1) if args.small else (args.steps, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "checkpoint_dir": folder,
            "alpha": 0.0,
            "beta": 0.0,
            "train_batch_size": args.batch,
            "show_progress": False,
        }
        _, trainer, _ = Runner(describe(settings.resolve("CALRec", "Pet", [], own))).build()
        model = trainer.model.train()
        groups = model.examples(0)
        order = np.random.default_rng(0).permutation(len(groups))
        batches = [
            [groups[row] for row in order[at : at + args.batch]]
            for at in range(0, steps * args.batch, args.batch)
        ]
        tokens = sum(len(text) for batch in batches for (text,) in batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def plain():
            for batch in batches:
                padded = pad(
                    [text for (text,) in batch], pad_id=model.bundle.tokenizer.pad_token_id
                ).to(model.device)
                mask = (
                    torch.arange(padded.input_ids.shape[1], device=model.device)
                    < padded.lengths[:, None]
                ).long()
                optimizer.zero_grad()
                model.backbone(
                    input_ids=padded.input_ids, attention_mask=mask, labels=padded.labels
                ).loss.backward()
                optimizer.step()

        def ours():
            for batch in batches:
                trainer._step(batch)

        plain(), ours()
        runs = [(timed(plain)[0], timed(ours)[0]) for _ in range(repeats)]
    plain_s, ours_s = (sorted(column)[len(runs) // 2] for column in zip(*runs, strict=True))
    row = {
        "tokens": tokens,
        "plain_tokens_s": round(tokens / plain_s),
        "ours_tokens_s": round(tokens / ours_s),
        "ratio": round(plain_s / ours_s, 2),
    }
    finish(bench="train", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
