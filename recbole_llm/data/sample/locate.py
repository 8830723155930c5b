"""Where a dataset's files are, and the synthetic sample that replaces one that is not prepared."""

import glob
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...errors import UserError
from ...settings import registry
from ...settings.files import SAMPLE
from ...settings.rules import check_name

if TYPE_CHECKING:
    from .generator import PetShop

SAMPLES = {"Pet": "Pet-sample"}  # real dataset -> the bundled sample that replaces it


def locate(dataset: str, data_path: str | Path, data_name: str | None = None) -> tuple[str, Path]:
    """Find a dataset's atomic files: in `data_path`, as a bundled sample, or as RecBole's example.

    Parameters
    ----------
    dataset : str
        Name of the dataset.
    data_path : str or Path
        Folder of the datasets.
    data_name : str or None
        Beginning of the names of its files; None means the name of the dataset.

    Returns
    -------
    name : str
        Name of the dataset, or of the sample that replaces it.
    folder : Path
        Folder of its files.

    Raises
    ------
    UserError
        With the datasets that exist, if it is in none of these places.
    """
    check_name(dataset)
    if data_name is not None:
        check_name(data_name, "data_name")
    prefix = data_name or dataset
    folder = Path(data_path) / dataset
    if _has_interactions(folder, prefix):
        return dataset, folder
    sample = SAMPLES.get(dataset, dataset)
    if sample in SAMPLES.values() and data_name in (None, sample):
        return sample, SAMPLE
    example = registry.recbole_folder() / "dataset_example" / dataset
    if _has_interactions(example, prefix):
        return dataset, example
    names = sorted({path.parent.name for path in Path(data_path).glob("*/*.inter")})
    existing = "nothing is there"
    if names:
        existing = f"found there: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    raise UserError(
        f"dataset {dataset!r}: expected {folder / prefix}.inter, {existing}; "
        "make it (`prepare --list`), put it there, set --data_path, "
        "or take ml-100k or Pet, which need no file"
    )


def alias(name: str) -> str:
    """Name by which a dataset and the sample that replaces it are recognised as one.

    Parameters
    ----------
    name : str
        Name of a dataset.

    Returns
    -------
    str
        The sample's name for a dataset that it replaces; any other name as it is.
    """
    return SAMPLES.get(name, name)


def located(settings: dict[str, Any]) -> dict[str, Any]:
    """Find the dataset of some settings.

    Parameters
    ----------
    settings : dict
        The settings of a run.

    Returns
    -------
    dict
        The settings, with the name of the dataset, or of the sample that replaces it, as `dataset`,
        and with the folder of its files as `data_path`.

    Raises
    ------
    UserError
        If the dataset does not exist.
    """
    name, folder = locate(settings["dataset"], settings["data_path"], settings["data_name"])
    return settings | {"dataset": name, "data_path": str(folder.resolve())}


def _has_interactions(folder: Path, prefix: str) -> bool:
    """Whether a folder has an .inter file whose name begins like this."""
    return any(folder.glob(f"{glob.escape(prefix)}*.inter"))


def warning(name: str) -> str | None:
    """Write the warning for a synthetic sample.

    Parameters
    ----------
    name : str
        Name of a dataset.

    Returns
    -------
    str or None
        A line, or None for a real dataset.
    """
    for real, sample in SAMPLES.items():
        if name == sample:
            return (
                f"!!! SYNTHETIC DATA: {real} is not prepared, this is the bundled sample {sample}; "
                "its numbers say nothing about real shops !!!"
            )
    return None


def bayes_bound(
    name: str, interactions: Interactions, cases: Cases, topk: Sequence[int]
) -> Mapping[str, float]:
    """Compute the best expected NDCG on a sample, which a model can only beat by luck.

    It is the value of the ranking by the probabilities of the sample's generator.

    Parameters
    ----------
    name : str
        Name of a dataset.
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases to be ranked.
    topk : sequence of int
        Lengths of the lists.

    Returns
    -------
    mapping of str to float
        `ndcg@k` -> value. Empty for a real dataset, and if filters have removed interactions from
        the histories, so that the generator cannot have made them.
    """
    if name not in SAMPLES.values():
        return {}
    histories = [
        list(interactions.items[interactions.item[begin:end]])
        for begin, end in zip(cases.begin, cases.end, strict=True)
    ]
    try:
        expected = _shop().bayes_ndcg(histories, topk)
    except ValueError:
        return {}
    return {f"ndcg@{k}": value for k, value in expected.items()}


@lru_cache(maxsize=1)
def _shop() -> "PetShop":
    """The generator of the sample. Building it draws its whole catalogue."""
    from .generator import build_world

    return build_world()
