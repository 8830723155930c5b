"""Training steps of CALRec's generation loss: a plain loop that pads every batch against ours.

    python bench/train.py

The plain loop pads a batch to its longest text. Both sides have the same texts (of the Pet sample),
model, batches and learned tokens. Counts of tokens are without padding.
"""

import tempfile

from common import arguments, finish, median_seconds


def main() -> None:
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
        batches, tokens = [], 0
        for begin in range(0, steps * args.batch, args.batch):
            batch = [groups[row] for row in order[begin : begin + args.batch]]
            batches.append(batch)
            tokens += sum(len(text) for (text,) in batch)
        pad_id = model.bundle.tokenizer.pad_token_id
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def plain():
            for batch in batches:
                padded = pad([text for (text,) in batch], pad_id=pad_id).to(model.device)
                ids = padded.input_ids
                places = torch.arange(ids.shape[1], device=model.device)
                mask = (places < padded.lengths[:, None]).long()
                optimizer.zero_grad()
                output = model.backbone(input_ids=ids, attention_mask=mask, labels=padded.labels)
                output.loss.backward()
                optimizer.step()

        def ours():
            for batch in batches:
                trainer._step(batch)

        plain()
        ours()
        seconds = median_seconds({"plain": plain, "ours": ours}, repeats)
    row = {
        "tokens": tokens,
        "plain_tokens_s": round(tokens / seconds["plain"]),
        "ours_tokens_s": round(tokens / seconds["ours"]),
        "ratio": round(seconds["plain"] / seconds["ours"], 2),
    }
    finish(bench="train", ratio=row["ratio"], rows=[row])


if __name__ == "__main__":
    main()
