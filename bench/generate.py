"""Sampling 32 continuations of one prompt: transformers' generate against ours.

    python bench/generate.py

Width 256, 4 layers, 384 prompt tokens, and 48 new tokens that no end token cuts short. The weights
are random, so that hardly any two samples have a common prefix. Those of a trained model do, and
ours computes common prefixes once.
"""

from common import arguments, device, finish, median_seconds, number_tokenizer

VOCABULARY = 4096


def backbone_without_end():
    """A model of random weights that never generates the end token."""
    import torch

    from recbole_llm.language.backbones.scratch import causal_model
    from recbole_llm.language.backbones.sources import Backbone

    tokenizer = number_tokenizer(40_000, 10, VOCABULARY)
    assert len(tokenizer) == VOCABULARY
    model = causal_model("small", tokenizer, 1024).eval().to(device())
    model.get_output_embeddings().weight.data[tokenizer.eos_token_id] = 0.0
    never = torch.nn.Linear(256, VOCABULARY, device=device())
    never.weight.data = model.get_output_embeddings().weight.data
    never.bias.data.zero_()[tokenizer.eos_token_id] = -1e9
    model.set_output_embeddings(never)
    return Backbone(model, tokenizer)


def main() -> None:
    args = arguments(__doc__, samples=32, prompt=384, new=48, repeats=3)
    import numpy as np
    import torch

    import recbole_llm  # noqa: F401
    from recbole_llm.language.decoding.sampling import sample, stream_key

    torch.manual_seed(0)
    new, repeats = (8, 1) if args.small else (args.new, args.repeats)
    backbone = backbone_without_end()
    prompt = np.random.default_rng(0).integers(2, VOCABULARY, size=args.prompt)
    keys = np.array([stream_key(0, "bench")])

    def theirs():
        ids = torch.from_numpy(prompt)[None].to(device())
        with torch.no_grad():
            backbone.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=0.5,
                top_k=0,
                num_return_sequences=args.samples,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=backbone.tokenizer.pad_token_id,
            )

    def ours():
        (generated,) = sample(
            backbone, [prompt], keys, samples=args.samples, temperature=0.5, max_new=new
        )
        assert {len(ids) for ids in generated.ids} == {new}

    rows = []
    for precision in ("fp32", "bf16"):
        with torch.autocast(device(), torch.bfloat16, enabled=precision == "bf16"):
            theirs()
            ours()
            seconds = median_seconds({"theirs": theirs, "ours": ours}, repeats)
        row = {
            "precision": precision,
            "generate_s": round(seconds["theirs"], 3),
            "ours_s": round(seconds["ours"], 3),
            "ratio": round(seconds["theirs"] / seconds["ours"], 2),
        }
        print(row)
        rows.append(row)
    best = round(rows[0]["generate_s"] / min(row["ours_s"] for row in rows), 2)
    finish(
        bench="generate",
        ratio=rows[0]["ratio"],
        best_against_fp32=best,
        rows=rows,
        prompt=args.prompt,
        new=new,
        samples=args.samples,
    )


if __name__ == "__main__":
    main()
