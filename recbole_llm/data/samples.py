"""Where a dataset's files are, the synthetic sample that stands in for one, and the best that can be had on it."""

from pathlib import Path

from .. import registry, resources
from ..errors import UserError
from .splits import Cases
from .tables import Tables

SAMPLES = {"Pet": "Pet-sample"}  # real dataset -> the bundled sample that stands in for it


def locate(dataset: str, data_path: str | Path) -> tuple[str, Path]:
    """(name, folder) of a dataset's atomic files.

    Looks in data_path, then for a bundled sample, then among RecBole's examples. Raises UserError with what is
    there.
    """
    folder = Path(data_path) / dataset
    if any(folder.glob(f"{dataset}*.inter")):
        return dataset, folder
    sample = SAMPLES.get(dataset, dataset)
    if sample in SAMPLES.values():
        return sample, resources.SAMPLE
    packaged = registry.recbole_folder() / "dataset_example" / dataset
    if packaged.is_dir():
        return dataset, packaged
    there = sorted({path.parent.name for path in Path(data_path).glob("*/*.inter")})
    found = f"found there: {', '.join(there)}" if there else "nothing is there"
    raise UserError(
        f"dataset {dataset!r}: expected {folder / dataset}.inter, {found}; put the file there, set --data_path, or take ml-100k or Pet, which need no file"
    )


def warning(name: str) -> str | None:
    """The loud line of a synthetic sample."""
    for real, sample in SAMPLES.items():
        if name == sample:
            return f"!!! SYNTHETIC DATA: {real} is not prepared, this is the bundled sample {sample}; its numbers say nothing about real shops !!!"
    return None


def bayes_bound(name: str, tables: Tables, cases: Cases, topk: list[int]) -> dict[str, float]:
    """ndcg@k -> expected value of the Bayes ranking of a sample's generator, which no model can beat but by luck."""
    if name not in SAMPLES.values():
        return {}
    from .prepare.pet_sample import build_world

    world = build_world()
    histories = [list(tables.items[tables.item[begin:end]]) for begin, end in zip(cases.begin, cases.end, strict=True)]
    try:
        return {f"ndcg@{k}": world.bayes_ndcg(histories, k) for k in topk}
    except ValueError:  # filters have taken events out of the histories: the generator cannot have made them
        return {}
