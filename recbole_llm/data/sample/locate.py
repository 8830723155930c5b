"""Where a dataset's files are, the synthetic sample that stands in for one, and the best that can be had on it."""

import glob
from pathlib import Path

from ...contracts.cases import Cases
from ...errors import UserError
from ...settings import files as resources
from ...settings import registry
from ...settings.layers import recbole_config
from ...settings.rules import check_name
from ..reading.tables import Tables

SAMPLES = {"Pet": "Pet-sample"}  # real dataset -> the bundled sample that stands in for it


def locate(dataset: str, data_path: str | Path, data_name: str | None = None) -> tuple[str, Path]:
    """(name, folder) of a dataset's atomic files, whose names begin with `data_name` if that is given.

    Looks in data_path, then for a bundled sample, then among RecBole's examples. Raises UserError with what is
    there.
    """
    check_name(dataset)
    if data_name is not None:
        check_name(data_name, "data_name")
    files = data_name or dataset
    folder, packaged = (
        Path(data_path) / dataset,
        registry.recbole_folder() / "dataset_example" / dataset,
    )
    sample = SAMPLES.get(dataset, dataset)
    if _holds(folder, files):
        return dataset, folder
    if sample in SAMPLES.values() and data_name in (None, sample):
        return sample, resources.SAMPLE
    if _holds(packaged, files):
        return dataset, packaged
    there = sorted({path.parent.name for path in Path(data_path).glob("*/*.inter")})
    found = (
        f"found there: {', '.join(there[:5])}{', …' if len(there) > 5 else ''}"
        if there
        else "nothing is there"
    )
    raise UserError(
        f"dataset {dataset!r}: expected {folder / files}.inter, {found}; make it (`prepare --list`), put it there, set --data_path, "
        "or take ml-100k or Pet, which need no file"
    )


def alias(name: str) -> str:
    """The name by which two names are seen to be one dataset: a sample's for the dataset that it stands in for."""
    return SAMPLES.get(name, name)


def configured(settings: dict):
    """(name, RecBole config) for settings: where the dataset lies is settled, and a sample goes by its own name."""
    name, folder = locate(settings["dataset"], settings["data_path"], settings["data_name"])
    return name, recbole_config(settings | {"dataset": name}, folder.resolve())


def _holds(folder: Path, name: str) -> bool:
    return any(folder.glob(f"{glob.escape(name)}*.inter"))


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
    from .generator import build_world

    world = build_world()
    histories = [
        list(tables.items[tables.item[begin:end]])
        for begin, end in zip(cases.begin, cases.end, strict=True)
    ]
    try:
        return {f"ndcg@{k}": world.bayes_ndcg(histories, k) for k in topk}
    except (
        ValueError
    ):  # filters have taken events out of the histories: the generator cannot have made them
        return {}
