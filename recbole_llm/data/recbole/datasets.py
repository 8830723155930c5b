"""RecBole's Dataset classes fed with ready frames: one set of users, items, order and cases for every model."""

import copy
import glob
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data import dataset as stock
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType, ModelType

from ...contracts.cases import Cases
from ...errors import UserError
from ..cases.splits import Split, draw, make_split
from ..reading.tables import Source, Tables, load

CASE_BEGIN, CASE_END = "case_begin", "case_end"
UNKNOWN_USER = -1  # becomes RecBole's padding user


@lru_cache(maxsize=4)
def _load(source: Source, stamp: tuple) -> Tables:
    """The models of one comparison share their tables, until a file changes."""
    return load(source)


def source_of(config) -> Source:
    """The `Source` that RecBole's and our configuration keys describe."""
    load_col = config["load_col"] or {}
    inter = load_col.get("inter", []) if isinstance(load_col, dict) else []
    return Source(
        folder=Path(config["data_path"]), name=config["data_name"] or config["dataset"],
        user_field=config["USER_ID_FIELD"], item_field=config["ITEM_ID_FIELD"],
        time_field=config["TIME_FIELD"], rating_field=config["RATING_FIELD"],
        inter_columns=None if inter == "*" else frozenset(inter) | frozenset(config["threshold"] or ()),
        dedup=config["dedup"], remove_repeats=config["rm_dup_inter"], catalogue=config["catalogue"],
        user_sample=config["user_sample"], sample_seed=config["sample_seed"],
        user_interval=config["user_inter_num_interval"] or "[0,inf)", item_interval=config["item_inter_num_interval"] or "[0,inf)",
        value_intervals=tuple((name, str(interval)) for name, interval in (config["val_interval"] or {}).items()),
        need_item_row=bool(config["need_item_row"]), benchmark=tuple(config["benchmark_filename"] or ()),
        separator=str(config["field_separator"] or "\t").replace("\\t", "\t"),
    )  # fmt: skip


def load_tables(config) -> Tables:
    source = source_of(config)
    files = sorted(source.folder.glob(f"{glob.escape(source.name)}.*"))
    return _load(source, tuple((file.name, file.stat().st_mtime_ns) for file in files))


class HistoryInteraction(Interaction):
    """One row per case; the `<field>_list` columns are cut from the event arrays when a row is read.

    RecBole copies every prefix (628 B a row at length 50); here a case costs its two row numbers.
    """

    def __init__(
        self,
        targets: dict,
        cases: Cases,
        lists: dict[str, torch.Tensor],
        width: int,
        length_field: str,
    ):
        self.cases, self.lists, self.width = cases, lists, width
        sizes = np.minimum(cases.end - cases.begin, width)
        super().__init__({**targets, length_field: torch.from_numpy(sizes)})

    def __getitem__(self, index):
        if isinstance(index, str):
            return (
                self._cut(self.lists[index], slice(None))
                if index in self.lists
                else self.interaction[index]
            )
        if torch.is_tensor(index):
            index = index.numpy()
        row = {name: self._cut(values, index) for name, values in self.lists.items()}
        return Interaction({name: values[index] for name, values in self.interaction.items()} | row)

    def __contains__(self, name):
        return name in self.interaction or name in self.lists

    def _cut(self, values: torch.Tensor, index) -> torch.Tensor:
        """The newest `width` values before each case's target, right-padded with 0."""
        end = np.atleast_1d(self.cases.end[index])
        begin = np.maximum(np.atleast_1d(self.cases.begin[index]), end - self.width)
        rows = begin[:, None] + np.arange(self.width)
        inside = rows < end[:, None]
        cut = values[torch.from_numpy(np.where(inside, rows, 0))]
        cut[torch.from_numpy(~inside)] = 0
        return cut if isinstance(index, slice) or np.ndim(index) else cut[0]


class TableMixin:
    """Over any of RecBole's Dataset classes: frames come from `Tables`, parts from `Split`.

    Time is handed over as the exact rank within the user, since RecBole keeps it as float32.
    """

    tables: Tables
    split: Split
    cases: Cases  # the prediction tasks of this part

    def _load_data(self, token, dataset_path):
        self.tables = load_tables(self.config)
        self.benchmark_filename_list = None  # a pre-split file is just another source of cases
        tables = self.tables
        source = FeatureSource.INTERACTION
        back = tables.file_order
        frame = {
            # dtype object: one string per token and not per row
            self.uid_field: pd.Series(tables.users[tables.user[back]], dtype=object),
            self.iid_field: pd.Series(tables.items[tables.item[back]], dtype=object),
            self.time_field: tables.position[back].astype(np.float64),
        }
        for name, ftype in (
            (self.uid_field, "token"),
            (self.iid_field, "token"),
            (self.time_field, "float"),
        ):
            self._declare(name, FeatureType(ftype), source)
        load_col = (self.config["load_col"] or {}).get("inter", [])
        for name, values in tables.columns.items():
            if (
                load_col != "*"
                and name not in load_col
                and name not in (self.config["threshold"] or ())
            ):
                continue
            frame[name] = values[back]
            self._declare(
                name, FeatureType.FLOAT if values.dtype.kind == "f" else FeatureType.TOKEN, source
            )
        self.field2source[self.uid_field] = FeatureSource.USER_ID
        self.field2source[self.iid_field] = FeatureSource.ITEM_ID
        self.inter_feat = pd.DataFrame(frame)
        self.item_feat = self._side_frame(
            "item", self.iid_field, tables.items, tables.item_table, tables.item_types
        )
        self.user_feat = self._side_frame(
            "user", self.uid_field, tables.users, tables.user_table, tables.user_types
        )

    def _declare(self, name, ftype, source, length=1):
        self.field2type[name], self.field2source[name], self.field2seqlen[name] = (
            ftype,
            source,
            length,
        )
        if ftype in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
            self.field2bucketnum[name] = 2

    def _side_frame(self, kind, key, tokens, table, types):
        """The columns of .item or .user that the model reads, or None."""
        wanted = (self.config["load_col"] or {}).get(kind) or []
        wanted = list(types) if wanted == "*" else [name for name in wanted if name != key]
        if kind == "item":
            features = self.config["selected_features"] or []
            attribute = self.config["item_attribute"]
            wanted += [
                name
                for name in [*features, *([attribute] if attribute else [])]
                if name not in wanted
            ]
        if (
            not wanted
        ):  # RecBole numbers what is in its frames: items without events need a row in one
            return (
                pd.DataFrame({key: tokens})
                if kind == "item" and self.config["catalogue"] == "all"
                else None
            )
        missing = [name for name in wanted if name not in types]
        if missing:
            raise UserError(
                f"dataset {self.tables.name} has no .{kind} column {', '.join(missing)}; it has {', '.join(types) or 'none'}; "
                "set selected_features, item_attribute or load_col"
            )
        if kind == "item" and self.tables.strangers:
            raise UserError(
                f"dataset {self.tables.name}: {self.tables.strangers}; write the ids alike in both files"
            )
        frame = {key: tokens}
        source = FeatureSource(kind)
        for name in wanted:
            ftype = FeatureType(types[name])
            try:
                frame[name], length = _convert(
                    table[name], ftype, (self.config["seq_len"] or {}).get(name)
                )
            except ValueError as error:
                raise UserError(
                    f"dataset {self.tables.name}, .{kind} column {name}: {error}; write numbers or make it a token column"
                ) from None
            self._declare(name, ftype, source, length)
        return pd.DataFrame(frame)

    def _data_filtering(self):
        """Nothing: the tables are filtered."""

    def data_augmentation(self):
        """Only declares the list fields; `HistoryInteraction` cuts them when they are read."""
        self._aug_presets()

    def build(self):
        self._change_feat_format()
        self._drop_unused_col()
        tables = self.tables
        order = torch.from_numpy(np.argsort(tables.file_order))
        self.events = Interaction(
            {name: self.inter_feat[name][order] for name in self.inter_feat.columns}
        )
        self.inter_feat = self.events
        if not torch.equal(
            self.events[self.iid_field], torch.from_numpy(tables.item.astype(np.int64) + 1)
        ):
            raise AssertionError("RecBole numbered the items in another order than the tables")
        if hasattr(self, "neg_item_list"):  # DIEN: one sampled negative per event
            self.neg_item_list = torch.as_tensor(self.neg_item_list)[order]
        args = self.config["eval_args"]
        split = make_split(tables, args["split"], args.get("part", "pretrain"))
        self.split = replace(split, test=draw(split.test, self.config["test_users"] or 0))
        return [
            self._part(cases, train=cases is self.split.train)
            for cases in (self.split.train, self.split.valid, self.split.test)
        ]

    def _part(self, cases: Cases, train: bool):
        part = self.copy(self._rows(cases, train))
        part.cases = cases
        return part

    def _rows(self, cases: Cases, train: bool) -> Interaction:
        rows = self.split.train_events.nonzero()[0] if train else cases.end
        return self.events[rows]

    def case_batch(self, cases: Cases) -> Interaction:
        """What a model may know of cases: the user, never the target or anything that came with it."""
        return self._with_user_features(
            Interaction({self.uid_field: torch.from_numpy(cases.user.astype(np.int64) + 1)})
        )

    def _with_user_features(self, interaction: Interaction) -> Interaction:
        if self.user_feat is not None:
            interaction.update(self.user_feat[interaction[self.uid_field]])
        return interaction

    def case_after(self, user: int) -> Cases:
        """The case that asks what follows everything user (a Tables index) has done."""
        start = self.tables.start
        return Cases(np.array([user], dtype=np.int32), start[[user]], start[[user + 1]])

    def extended(self, items: np.ndarray):
        """(dataset, case) with one more user, unknown to any model, who met these Tables items in this order."""
        old, size = self.tables, len(items)
        tables = replace(
            old, users=np.append(old.users, "(somebody)"), start=np.append(old.start, old.start[-1] + size),
            item=np.append(old.item, items.astype(np.int32)), time=np.append(old.time, np.arange(size, dtype=np.float64)),
            file_order=np.append(old.file_order, np.arange(size) + len(old.item)),
            columns={name: np.append(values, values[:1].repeat(size)) for name, values in old.columns.items()},
        )  # fmt: skip
        more = {name: values.new_zeros(size) for name, values in self.events.interaction.items()}
        more[self.iid_field] = torch.from_numpy(items.astype(np.int64) + 1)
        more[self.time_field] = torch.arange(size, dtype=torch.float32)
        dataset = copy.copy(self)
        dataset.tables = tables
        dataset.events = Interaction(
            {
                name: torch.cat([values, more[name]])
                for name, values in self.events.interaction.items()
            }
        )
        if hasattr(self, "neg_item_list"):
            dataset.neg_item_list = torch.cat(
                [
                    self.neg_item_list,
                    self.neg_item_list.new_zeros(size, *self.neg_item_list.shape[1:]),
                ]
            )
        case = dataset.case_after(len(old.users))
        return dataset, Cases(np.array([UNKNOWN_USER], dtype=np.int32), case.begin, case.end)

    def add_items(self, interaction: Interaction, items: torch.Tensor) -> Interaction:
        """Cases x candidate items, flat and row by row, for `predict`: items is int64 [cases, C]."""
        flat = interaction.repeat_interleave(items.shape[1])
        flat.update(Interaction({self.iid_field: items.reshape(-1)}))
        if self.item_feat is not None:
            flat.update(self.item_feat[flat[self.iid_field]])
        return flat


class SequenceMixin(TableMixin):
    """For RecBole's sequential datasets: rows are cases with their lists."""

    def _benchmark_presets(self):
        """RecBole looks for the lists in pre-split files and augments nothing; here such files only bring the cases."""
        self._aug_presets()

    def _lists(self) -> dict[str, torch.Tensor]:
        suffix = self.config["LIST_SUFFIX"]
        lists = {
            name + suffix: self.events[name]
            for name in self.events.columns
            if name != self.uid_field
        }
        if hasattr(self, "neg_item_list"):
            lists[self.neg_item_list_field] = self.neg_item_list
        return lists

    def _history(self, cases: Cases, targets: dict) -> HistoryInteraction:
        return HistoryInteraction(
            targets, cases, self._lists(), self.max_item_list_len, self.item_list_length_field
        )

    def _rows(self, cases, train):
        return self._history(cases, self.events[cases.end].interaction)

    def case_batch(self, cases):
        user = {self.uid_field: torch.from_numpy(cases.user.astype(np.int64) + 1)}
        return self._with_user_features(self._history(cases, user)[np.arange(len(cases))])

    def inter_matrix(self, form="coo", value_field=None):
        rows = self.events[self.split.train_events.nonzero()[0]]
        return self._create_sparse_matrix(rows, self.uid_field, self.iid_field, form, value_field)


class TextDataset(TableMixin, stock.Dataset):
    """For our models: a row is a case by its two row numbers, and the model reads the tables."""

    def _rows(self, cases, train):
        rows = self.events[cases.end]
        rows.update(_bounds(cases))
        return rows

    def case_batch(self, cases):
        batch = super().case_batch(cases)
        batch.update(_bounds(cases))
        return batch

    def cases_of(self, interaction: Interaction) -> Cases:
        """The cases of a batch that `case_batch` or one of RecBole's loaders made."""
        user, begin, end = (
            interaction[name].cpu().numpy() for name in (self.uid_field, CASE_BEGIN, CASE_END)
        )
        return Cases((user - 1).astype(np.int32), begin, end)


def _bounds(cases: Cases) -> Interaction:
    return Interaction(
        {CASE_BEGIN: torch.from_numpy(cases.begin), CASE_END: torch.from_numpy(cases.end)}
    )


def _convert(cells: pd.Series, ftype: FeatureType, limit: int | None) -> tuple[object, int]:
    """Str cells as RecBole wants them before remapping, with the longest length of a sequence."""
    if ftype == FeatureType.TOKEN:
        return [cell or None for cell in cells], 1
    if ftype == FeatureType.FLOAT:
        return np.array([cell or np.nan for cell in cells], dtype=np.float64), 1
    dtype = str if ftype == FeatureType.TOKEN_SEQ else np.float64
    rows = [np.array(cell.split()[:limit], dtype=dtype) for cell in cells]
    return rows, max(1, max(map(len, rows)))


_BY_TYPE = {
    ModelType.GENERAL: stock.Dataset,
    ModelType.TRADITIONAL: stock.Dataset,
    ModelType.CONTEXT: stock.Dataset,
    ModelType.SEQUENTIAL: stock.SequentialDataset,
}


def dataset_class(model_name: str, model_type: ModelType) -> type:
    """Our version of the Dataset class that RecBole would pick for a stock model."""
    base = getattr(stock, model_name + "Dataset", None) or _BY_TYPE.get(model_type)
    if base is None or issubclass(base, stock.KnowledgeBasedDataset | stock.DecisionTreeDataset):
        reads = "trees" if base is stock.DecisionTreeDataset else "a knowledge graph (.kg, .link)"
        raise UserError(
            f"{model_name} learns from {reads}: such models are not run by this harness; use recbole.quick_start.run_recbole"
        )
    mixin = SequenceMixin if issubclass(base, stock.SequentialDataset) else TableMixin
    return type(f"Table{base.__name__}", (mixin, base), {})
