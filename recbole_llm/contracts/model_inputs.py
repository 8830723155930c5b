"""What a run gives its model beside RecBole's Config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelInputs:
    """Data and earlier runs that a model is made from.

    Attributes
    ----------
    settings : mapping
        The settings of the run, as `run.json` has them.
    interactions : Interactions
        The dataset, see :mod:`recbole_llm.data.reading.interactions`.
    split : Split
        Its training, validation and test cases, see :mod:`recbole_llm.data.cases.splits`.
    text : ItemText or None
        The texts of its items; None for a model that reads none.
    start : Path or None
        Folder of the finished run whose weights training begins with (`init_from`).
    restored : Path or None
        Folder of the finished run whose weights are used as they are.
    lists : Path or None
        Folder of the finished run whose stored lists are ranked again (`rerank_from`).
    further_datasets : tuple of mapping
        Settings of the datasets that the run trains on beside its own (`datasets`).
    """

    settings: Mapping[str, Any]
    interactions: Any
    split: Any
    text: Any = None
    start: Path | None = None
    restored: Path | None = None
    lists: Path | None = None
    further_datasets: tuple[Mapping[str, Any], ...] = ()
