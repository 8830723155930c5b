"""RecBole's Dataset classes over `Interactions`.

Every model has the same users, items, order and cases.
"""

import copy
import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from recbole.data import dataset as stock
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType, ModelType

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...contracts.model_inputs import ModelInputs
from ...errors import UserError
from ...settings.layers import settings_of_config
from ...settings.run_record import backbone_of
from ...storage.run_folders import find_run
from ..cases.splits import Split, draw, make_split
from ..reading.interactions import UNBOUNDED, Source, load
from ..texts.text import ItemText

CASE_BEGIN, CASE_END = "case_begin", "case_end"
UNKNOWN_USER = -1  # becomes RecBole's padding user


@lru_cache(maxsize=4)
def _load(source: Source, stamp: tuple[tuple[str, int], ...], show: bool) -> Interactions:
    """Read a dataset; the models of one comparison share it until the stamp of a file changes."""
    return load(source, show)


def source_of(config: Any) -> Source:
    """Collect the configuration keys that say which files to read and how to filter them.

    Parameters
    ----------
    config : Config or mapping
        RecBole's keys, and ours.

    Returns
    -------
    Source
        The files and filters.
    """
    load_col = config["load_col"] or {}
    inter = load_col.get("inter", []) if isinstance(load_col, dict) else []
    columns = None if inter == "*" else frozenset(inter) | frozenset(config["threshold"] or ())
    intervals = config["val_interval"] or {}
    return Source(
        folder=Path(config["data_path"]),
        name=config["data_name"] or config["dataset"],
        user_field=config["USER_ID_FIELD"],
        item_field=config["ITEM_ID_FIELD"],
        time_field=config["TIME_FIELD"],
        rating_field=config["RATING_FIELD"],
        inter_columns=columns,
        dedup=config["dedup"],
        remove_repeats=config["rm_dup_inter"],
        catalogue=config["catalogue"],
        user_sample=config["user_sample"],
        sample_seed=config["sample_seed"],
        user_interval=config["user_inter_num_interval"] or UNBOUNDED,
        item_interval=config["item_inter_num_interval"] or UNBOUNDED,
        value_intervals=tuple((name, str(interval)) for name, interval in intervals.items()),
        need_item_row=bool(config["need_item_row"]),
        benchmark=tuple(config["benchmark_filename"] or ()),
        separator=str(config["field_separator"] or "\t").replace("\\t", "\t"),
        cache=Path(config["checkpoint_dir"]) / "cache" / "interactions",
    )


def load_interactions(config: Any) -> Interactions:
    """Read and filter the dataset of a configuration, or take it from the cache of this process.

    Parameters
    ----------
    config : Config or mapping
        RecBole's keys, and ours.

    Returns
    -------
    Interactions
        The dataset.

    Raises
    ------
    UserError
        If it cannot be read, or nothing of it is left.
    """
    source = source_of(config)
    files = sorted(source.folder.glob(f"{glob.escape(source.name)}.*"))
    stamp = tuple((file.name, file.stat().st_mtime_ns) for file in files)
    return _load(source, stamp, bool(config["show_progress"]))


def split_of(config: Any, interactions: Interactions) -> Split:
    """Make the split of a configuration, with `test_users` of its test cases.

    Parameters
    ----------
    config : Config or mapping
        RecBole's keys, and ours.
    interactions : Interactions
        The dataset.

    Returns
    -------
    Split
        The cases.

    Raises
    ------
    UserError
        If the split is wrong or leaves no training or no test case.
    """
    args = config["eval_args"]
    split = make_split(interactions, args["split"], args.get("part", "pretrain"))
    return replace(split, test=draw(split.test, config["test_users"] or 0))


class HistoryInteraction(Interaction):
    """An Interaction with a row per case, whose `<field>_list` columns are cut when they are read.

    RecBole copies every prefix (628 B a row at length 50); here a case costs its two row numbers.

    Parameters
    ----------
    targets : mapping of str to Tensor, [n_cases, ...] each
        The columns that are no lists.
    cases : Cases
        Where the history of each row is.
    lists : mapping of str to Tensor, [n_interactions, ...] each
        Per list column, its value for every interaction of the dataset.
    width : int
        Length of the list columns; older values are cut off.
    length_field : str
        Name of the column with the lengths of the histories.
    """

    def __init__(
        self,
        targets: Mapping[str, torch.Tensor],
        cases: Cases,
        lists: Mapping[str, torch.Tensor],
        width: int,
        length_field: str,
    ):
        self.cases, self.lists, self.width = cases, lists, width
        lengths = np.minimum(cases.end - cases.begin, width)
        super().__init__({**targets, length_field: torch.from_numpy(lengths)})

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            if index in self.lists:
                return self._cut(self.lists[index], slice(None))
            return self.interaction[index]
        if torch.is_tensor(index):
            index = index.numpy()
        rows = {name: values[index] for name, values in self.interaction.items()}
        for name, values in self.lists.items():
            rows[name] = self._cut(values, index)
        return Interaction(rows)

    def __contains__(self, name: object) -> bool:
        return name in self.interaction or name in self.lists

    def _cut(self, values: torch.Tensor, index: Any) -> torch.Tensor:
        """The newest `width` values before the targets of some cases, padded with 0 at the end."""
        end = np.atleast_1d(self.cases.end[index])
        begin = np.maximum(np.atleast_1d(self.cases.begin[index]), end - self.width)
        rows = begin[:, None] + np.arange(self.width)
        inside = rows < end[:, None]
        cut = values[torch.from_numpy(np.where(inside, rows, 0))]
        cut[torch.from_numpy(~inside)] = 0
        return cut if isinstance(index, slice) or np.ndim(index) else cut[0]


if TYPE_CHECKING:  # a mixin uses the attributes of the class that it is mixed into
    from recbole.data.dataset import Dataset as _Mixin
else:
    _Mixin = object


class TableMixin(_Mixin):
    """Makes any of RecBole's Dataset classes read `Interactions` and `Split` in place of files.

    RecBole stores times as float32, which cannot tell close ones apart: its time column therefore
    holds the position of each interaction in its user's sequence.

    Attributes
    ----------
    interactions : Interactions
        The dataset.
    inputs : ModelInputs or None
        What the run gives its model, the split among it; None for a dataset of RecBole's own code.
    split : Split
        All cases.
    cases : Cases
        The cases of this one of the three datasets that `build` returns.
    events : Interaction
        All interactions with their features, in the order of `interactions`.
    neg_item_list : Tensor
        DIEN only: sampled negatives of each interaction, in the order of `interactions`.
    """

    interactions: Interactions
    inputs: ModelInputs | None = None
    split: Split
    cases: Cases
    events: Interaction
    neg_item_list: torch.Tensor

    def _load_data(self, token: str, dataset_path: str) -> None:
        self.interactions = load_interactions(self.config)
        self.benchmark_filename_list = None  # pre-split files are another source of cases only
        interactions = self.interactions
        order = interactions.file_order  # RecBole numbers tokens by first appearance in the file
        frame = {
            # dtype object: one string per token and not per row
            self.uid_field: pd.Series(interactions.users[interactions.user[order]], dtype=object),
            self.iid_field: pd.Series(interactions.items[interactions.item[order]], dtype=object),
            self.time_field: interactions.position[order].astype(np.float64),
        }
        self._declare(self.uid_field, FeatureType.TOKEN, FeatureSource.INTERACTION)
        self._declare(self.iid_field, FeatureType.TOKEN, FeatureSource.INTERACTION)
        self._declare(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION)
        for name in self._columns_to_load():
            values = interactions.columns[name]
            is_number = values.dtype.kind == "f"
            frame[name] = values[order]
            feature_type = FeatureType.FLOAT if is_number else FeatureType.TOKEN
            self._declare(name, feature_type, FeatureSource.INTERACTION)
        self.field2source[self.uid_field] = FeatureSource.USER_ID
        self.field2source[self.iid_field] = FeatureSource.ITEM_ID
        self.inter_feat = pd.DataFrame(frame)
        self.item_feat = self._item_frame()
        self.user_feat = self._user_frame()

    def _columns_to_load(self) -> list[str]:
        """Names of the further columns of .inter that RecBole is given."""
        load_col = (self.config["load_col"] or {}).get("inter", [])
        if load_col == "*":
            return list(self.interactions.columns)
        wanted = {*load_col, *(self.config["threshold"] or ())}
        return [name for name in self.interactions.columns if name in wanted]

    def _declare(
        self, name: str, feature_type: FeatureType, source: FeatureSource, length: int = 1
    ) -> None:
        """Enter a column into RecBole's registers of types, sources and sequence lengths."""
        self.field2type[name] = feature_type
        self.field2source[name] = source
        self.field2seqlen[name] = length
        if feature_type in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
            self.field2bucketnum[name] = 2

    def _item_frame(self) -> pd.DataFrame | None:
        """The columns of .item that the model reads, or None.

        RecBole numbers what its frames contain. If the catalogue has items without interactions,
        they need a row in this frame, even if the model reads no column.
        """
        interactions = self.interactions
        wanted = self._side_columns("item", self.iid_field, interactions.item_types)
        attribute = self.config["item_attribute"]
        further = [*(self.config["selected_features"] or []), *([attribute] if attribute else [])]
        wanted += [name for name in further if name not in wanted]
        if not wanted:
            is_whole = self.config["catalogue"] == "all"
            return pd.DataFrame({self.iid_field: interactions.items}) if is_whole else None
        return self._side_frame(
            FeatureSource.ITEM, self.iid_field, interactions.items, interactions.item_table, wanted
        )

    def _user_frame(self) -> pd.DataFrame | None:
        """The columns of .user that the model reads, or None."""
        interactions = self.interactions
        wanted = self._side_columns("user", self.uid_field, interactions.user_types)
        if not wanted:
            return None
        table = pd.DataFrame() if interactions.user_table is None else interactions.user_table
        return self._side_frame(
            FeatureSource.USER, self.uid_field, interactions.users, table, wanted
        )

    def _side_columns(self, kind: str, key: str, types: Mapping[str, str]) -> list[str]:
        """Names of the columns of .item or .user in `load_col`, without the id."""
        load_col = (self.config["load_col"] or {}).get(kind) or []
        if load_col == "*":
            return list(types)
        return [name for name in load_col if name != key]

    def _side_frame(
        self,
        source: FeatureSource,
        key: str,
        tokens: np.ndarray,
        table: pd.DataFrame,
        wanted: Sequence[str],
    ) -> pd.DataFrame:
        """The wanted columns of a side table as RecBole expects them."""
        interactions, kind = self.interactions, source.value
        types = interactions.item_types if source == FeatureSource.ITEM else interactions.user_types
        missing = [name for name in wanted if name not in types]
        if missing:
            raise UserError(
                f"dataset {interactions.name} has no .{kind} column {', '.join(missing)}; "
                f"it has {', '.join(types) or 'none'}; "
                "set selected_features, item_attribute or load_col"
            )
        if source == FeatureSource.ITEM and interactions.strangers:
            raise UserError(
                f"dataset {interactions.name}: {interactions.strangers}; "
                "write the ids alike in both files"
            )
        frame: dict[str, Any] = {key: tokens}
        for name in wanted:
            feature_type = FeatureType(types[name])
            limit = (self.config["seq_len"] or {}).get(name)
            try:
                frame[name], length = _convert(table[name], feature_type, limit)
            except ValueError as error:
                raise UserError(
                    f"dataset {interactions.name}, .{kind} column {name}: {error}; "
                    "write numbers or make it a token column"
                ) from None
            self._declare(name, feature_type, source, length)
        return pd.DataFrame(frame)

    def _data_filtering(self) -> None:
        """Filter nothing: the interactions are filtered."""

    def data_augmentation(self) -> None:
        """Declare the list fields only; `HistoryInteraction` cuts the lists when they are read."""
        self._aug_presets()

    def build(self) -> list["TableMixin"]:
        """Number the tokens and make the three datasets of the split.

        Returns
        -------
        list of TableMixin
            The datasets of training, validation and testing.

        Raises
        ------
        UserError
            If the split is wrong or leaves no training or no test case.
        AssertionError
            If RecBole numbered the items in another order than `interactions`.
        """
        self._change_feat_format()
        self._drop_unused_col()
        interactions = self.interactions
        order = torch.from_numpy(np.argsort(interactions.file_order))
        columns = {name: self.inter_feat[name][order] for name in self.inter_feat.columns}
        self.events = Interaction(columns)
        self.inter_feat = self.events
        expected = torch.from_numpy(interactions.item.astype(np.int64) + 1)
        if not torch.equal(self.events[self.iid_field], expected):
            raise AssertionError(
                "RecBole numbered the items in another order than the interactions"
            )
        if hasattr(self, "neg_item_list"):
            self.neg_item_list = torch.as_tensor(self.neg_item_list)[order]
        self.split = self.inputs.split if self.inputs else split_of(self.config, interactions)
        return [
            self._of_cases(self.split.train, train=True),
            self._of_cases(self.split.valid, train=False),
            self._of_cases(self.split.test, train=False),
        ]

    def _of_cases(self, cases: Cases, train: bool) -> "TableMixin":
        """A dataset of some cases."""
        dataset = self.copy(self._rows(cases, train))
        dataset.cases = cases
        return dataset

    def _rows(self, cases: Cases, train: bool) -> Interaction:
        """The rows of a dataset of some cases, as RecBole's models read them."""
        rows = self.split.train_events.nonzero()[0] if train else cases.end
        return self.events[rows]

    def case_batch(self, cases: Cases) -> Interaction:
        """Collect what a model may see of cases: never the target, nor anything recorded with it.

        Parameters
        ----------
        cases : Cases
            The cases to be scored.

        Returns
        -------
        Interaction
            One row per case, with the user and the user's features.
        """
        return self._with_user_features(Interaction(self._user_column(cases)))

    def _user_column(self, cases: Cases) -> dict[str, torch.Tensor]:
        """The users of cases by RecBole's ids."""
        return {self.uid_field: torch.from_numpy(cases.user.astype(np.int64) + 1)}

    def _with_user_features(self, interaction: Interaction) -> Interaction:
        if self.user_feat is not None:
            interaction.update(self.user_feat[interaction[self.uid_field]])
        return interaction

    def case_after(self, user: int) -> Cases:
        """Make the case that asks what follows all interactions of a user.

        Parameters
        ----------
        user : int
            Index of the user in `interactions`.

        Returns
        -------
        Cases
            One case, whose target does not exist.
        """
        start = self.interactions.start
        return Cases(np.array([user], dtype=np.int32), start[[user]], start[[user + 1]])

    def extended(self, items: np.ndarray) -> tuple["TableMixin", Cases]:
        """Add a user that no model knows.

        Parameters
        ----------
        items : ndarray of int, [n]
            Items of the user's interactions, oldest first, as indices of `interactions`.

        Returns
        -------
        dataset : TableMixin
            A copy of this dataset with one more user.
        case : Cases
            The case that asks what this user does next; its user is `UNKNOWN_USER`.
        """
        size = len(items)
        more = {name: values.new_zeros(size) for name, values in self.events.interaction.items()}
        more[self.iid_field] = torch.from_numpy(items.astype(np.int64) + 1)
        more[self.time_field] = torch.arange(size, dtype=torch.float32)
        columns = {}
        for name, values in self.events.interaction.items():
            columns[name] = torch.cat([values, more[name]])
        dataset = copy.copy(self)
        dataset.interactions = _with_user(self.interactions, items)
        dataset.events = Interaction(columns)
        if hasattr(self, "neg_item_list"):
            negatives = self.neg_item_list
            blank = negatives.new_zeros(size, *negatives.shape[1:])
            dataset.neg_item_list = torch.cat([negatives, blank])
        case = dataset.case_after(len(self.interactions.users))
        return dataset, Cases(np.array([UNKNOWN_USER], dtype=np.int32), case.begin, case.end)

    def add_items(self, interaction: Interaction, items: torch.Tensor) -> Interaction:
        """Combine each case with each of its candidate items, as `predict` reads them.

        Parameters
        ----------
        interaction : Interaction
            One row per case.
        items : Tensor of int64, [n_cases, C]
            Candidates of each case, by RecBole's ids.

        Returns
        -------
        Interaction
            n_cases · C rows, those of one case together, with the features of the items.
        """
        flat = interaction.repeat_interleave(items.shape[1])
        flat.update(Interaction({self.iid_field: items.reshape(-1)}))
        if self.item_feat is not None:
            flat.update(self.item_feat[flat[self.iid_field]])
        return flat


def _with_user(interactions: Interactions, items: np.ndarray) -> Interactions:
    """The interactions with one more user at the end, whose interactions are with these items."""
    size = len(items)
    columns = {}
    for name, values in interactions.columns.items():
        columns[name] = np.append(values, values[:1].repeat(size))
    return replace(
        interactions,
        users=np.append(interactions.users, "(somebody)"),
        start=np.append(interactions.start, interactions.start[-1] + size),
        item=np.append(interactions.item, items.astype(np.int32)),
        time=np.append(interactions.time, np.arange(size, dtype=np.float64)),
        file_order=np.append(interactions.file_order, np.arange(size) + len(interactions.item)),
        columns=columns,
    )


class SequenceMixin(TableMixin):
    """For RecBole's sequential datasets: one row is a case with its history lists."""

    def _benchmark_presets(self) -> None:
        """Declare the list fields for pre-split files, too, which bring the cases only.

        RecBole would read the lists from these files and augment nothing.
        """
        self._aug_presets()

    def _lists(self) -> dict[str, torch.Tensor]:
        """Per list field, its value for every interaction."""
        suffix = self.config["LIST_SUFFIX"]
        lists = {
            name + suffix: self.events[name]
            for name in self.events.columns
            if name != self.uid_field
        }
        if hasattr(self, "neg_item_list"):
            lists[self.neg_item_list_field] = self.neg_item_list
        return lists

    def _history(self, cases: Cases, targets: Mapping[str, torch.Tensor]) -> HistoryInteraction:
        return HistoryInteraction(
            targets, cases, self._lists(), self.max_item_list_len, self.item_list_length_field
        )

    def _rows(self, cases: Cases, train: bool) -> Interaction:
        return self._history(cases, self.events[cases.end].interaction)

    def case_batch(self, cases: Cases) -> Interaction:
        """Collect what a model may see of cases; see `TableMixin.case_batch`.

        Parameters
        ----------
        cases : Cases
            The cases to be scored.

        Returns
        -------
        Interaction
            One row per case, with the user, the user's features and the history lists.
        """
        history = self._history(cases, self._user_column(cases))
        return self._with_user_features(history[np.arange(len(cases))])

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Make RecBole's sparse matrix of users and items from the training interactions.

        Parameters
        ----------
        form : {"coo", "csr"}
            Format of the matrix.
        value_field : str or None
            Column of the values; None means 1 per interaction.

        Returns
        -------
        scipy.sparse matrix, [n_users + 1, n_items + 1]
            The matrix, by RecBole's ids.
        """
        rows = self.events[self.split.train_events.nonzero()[0]]
        return self._create_sparse_matrix(rows, self.uid_field, self.iid_field, form, value_field)


class TextDataset(TableMixin, stock.Dataset):
    """For text models: a row is a case by its two row numbers; the model reads the rest."""

    def build(self) -> list["TableMixin"]:
        """Make the three datasets of the split; see `TableMixin.build`.

        For a training of RecBole's own code, what a run gives its model is made here.
        """
        if self.inputs is None:
            self.inputs = _inputs_of(self.config, self.interactions)
        return super().build()

    def _rows(self, cases: Cases, train: bool) -> Interaction:
        rows = self.events[cases.end]
        rows.update(_bounds(cases))
        return rows

    def case_batch(self, cases: Cases) -> Interaction:
        """Collect what a model may see of cases; see `TableMixin.case_batch`.

        Parameters
        ----------
        cases : Cases
            The cases to be scored.

        Returns
        -------
        Interaction
            One row per case, with the user, the user's features and the rows of the history.
        """
        batch = super().case_batch(cases)
        batch.update(_bounds(cases))
        return batch

    def cases_of(self, interaction: Interaction) -> Cases:
        """Read the cases of a batch.

        Parameters
        ----------
        interaction : Interaction
            A batch of `case_batch` or of one of RecBole's loaders.

        Returns
        -------
        Cases
            The case of each row.
        """
        user, begin, end = (
            interaction[name].cpu().numpy() for name in (self.uid_field, CASE_BEGIN, CASE_END)
        )
        return Cases((user - 1).astype(np.int32), begin, end)


def _inputs_of(config: Any, interactions: Interactions) -> ModelInputs:
    """What RecBole's own code gives one of our models.

    Raises UserError for what only our commands can do.
    """
    several_runs = [key for key in ("stages", "datasets", "rerank_from") if config[key]]
    if several_runs:
        raise UserError(
            f"{', '.join(several_runs)}: of runs of recbole_llm; RecBole's run_recbole trains one "
            "model on one dataset. Use recbole_llm.run"
        )
    settings, start = settings_of_config(config), None
    if settings["init_from"]:
        start = find_run(settings["init_from"], Path(settings["checkpoint_dir"]))
        if "backbone" in settings:
            settings["backbone"] = backbone_of(start)
    return ModelInputs(
        settings=settings,
        interactions=interactions,
        split=split_of(config, interactions),
        text=ItemText.from_interactions(interactions, config["text_fields"], config["text_words"]),
        start=start,
    )


def _bounds(cases: Cases) -> Interaction:
    """The row numbers of cases as columns."""
    # copies: those of large data are mapped files, which torch must not write to
    begin, end = (torch.from_numpy(np.array(rows)) for rows in (cases.begin, cases.end))
    return Interaction({CASE_BEGIN: begin, CASE_END: end})


def _convert(
    cells: Iterable[str], feature_type: FeatureType, limit: int | None
) -> tuple[Sequence[Any] | np.ndarray, int]:
    """The cells of a column as RecBole expects them before it numbers tokens.

    Returns the values, and the length of the longest sequence (1 for a column that has none).
    """
    if feature_type == FeatureType.TOKEN:
        return [cell or None for cell in cells], 1
    if feature_type == FeatureType.FLOAT:
        return np.array([cell or np.nan for cell in cells], dtype=np.float64), 1
    dtype: type = str if feature_type == FeatureType.TOKEN_SEQ else np.float64
    rows: list[np.ndarray] = [np.array(cell.split()[:limit], dtype=dtype) for cell in cells]
    return rows, max(1, max(len(row) for row in rows))


_BY_TYPE = {
    ModelType.GENERAL: stock.Dataset,
    ModelType.TRADITIONAL: stock.Dataset,
    ModelType.CONTEXT: stock.Dataset,
    ModelType.SEQUENTIAL: stock.SequentialDataset,
}


def dataset_class(model_name: str, model_type: ModelType) -> type:
    """Make our version of the Dataset class that RecBole chooses for one of its models.

    Parameters
    ----------
    model_name : str
        RecBole's name of the model.
    model_type : ModelType
        RecBole's type of the model.

    Returns
    -------
    type
        The class, with one of our mixins before it.

    Raises
    ------
    UserError
        If the model learns from trees or from a knowledge graph.
    """
    base = getattr(stock, model_name + "Dataset", None) or _BY_TYPE.get(model_type)
    if base is None or issubclass(base, stock.KnowledgeBasedDataset | stock.DecisionTreeDataset):
        reads = "trees" if base is stock.DecisionTreeDataset else "a knowledge graph (.kg, .link)"
        raise UserError(
            f"{model_name} learns from {reads}: such models are not run by this harness; "
            "use recbole.quick_start.run_recbole"
        )
    mixin = SequenceMixin if issubclass(base, stock.SequentialDataset) else TableMixin
    return type(f"Table{base.__name__}", (mixin, base), {})
