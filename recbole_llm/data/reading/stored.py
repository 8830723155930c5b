"""Interactions of any number, read once in pieces into files that are mapped into memory.

A large .inter file is read line by line into numbers, the numbers are distributed to blocks of
whole users, each block is filtered as `interactions.load` filters a dataset, and what remains is
written in the order of users and times. Of events, no step holds more than a block or a piece of
the file; of users, items and other tokens there are some numbers each.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...contracts.interactions import Interactions
from ...contracts.stored_tokens import StoredTokens
from ...storage.arrays import ranges
from ...storage.files import atomically
from ...storage.made_once import make_once
from ...storage.progress import progress
from . import interactions as whole
from .atomic import NotInPiecesError, read_pieces

FORMAT = 2  # raised when the files of a store change their meaning
PIECE = 2**25  # bytes of the file that are parsed together
TOKENS = 2**17  # that are copied together
BLOCK = 2**21  # most events whose users are filtered together, if these are more than one
ROW = "\trow"  # number of an event's line in the file; no column of a file has a tab in its name
PART = " in a part of the file"  # where the lines with a fault are counted
SUMMARY = "store.json"
EVENTS = {"item": np.int32, "time": np.float64, "file_order": np.int64, "user": np.int32}


def load_stored(source: whole.Source, folder: Path, show_progress: bool = False) -> Interactions:
    """Read and filter a dataset as `interactions.load` does, with arrays that are mapped files.

    Parameters
    ----------
    source : Source
        Which files to read and how to filter them; not pre-split files.
    folder : Path
        Where stores are kept, each in a folder of its own.
    show_progress : bool
        Whether a bar is drawn while a store is made.

    Returns
    -------
    Interactions
        The dataset.

    Raises
    ------
    UserError
        See `interactions.load`.
    NotInPiecesError
        If the file cannot be read in pieces.
    """
    target = folder / _key(source)
    content = f"{source.name} in arrays of events"
    make_once(target, _is_whole, lambda made: _Builder(source, made, show_progress).run(), content)
    return _open(source, target)


def _key(source: whole.Source) -> str:
    """A hash of all that decides a store."""
    columns = source.inter_columns
    # a set has another order in each process
    settings = vars(source) | {"cache": None, "inter_columns": columns and sorted(columns)}
    stamps = []
    for suffix in ("inter", "item", "user"):
        path = source.path(suffix)
        stat = path.stat() if path.is_file() else None
        stamps.append(stat and (stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr((FORMAT, settings, stamps)).encode()).hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Whether a store has all of its files, of their sizes."""
    try:
        sizes = json.loads((folder / SUMMARY).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, AttributeError):
        return False


def _open(source: whole.Source, folder: Path) -> Interactions:
    """The dataset of a store, with the side tables."""
    summary = json.loads((folder / SUMMARY).read_text())
    events = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in EVENTS}
    columns = {}
    for number, name in enumerate(summary["columns"]):
        values = np.load(folder / f"column-{number}.npy", mmap_mode="r")
        if values.dtype != np.float64:
            values = np.asarray(_tokens(folder, f"column-{number}"))[values]
        columns[name] = values
    made = whole.describe(
        source,
        _tokens(folder, "users"),
        np.asarray(_tokens(folder, "items")),
        list(summary["log"]),
        start=np.load(folder / "start.npy"),
        item=events["item"],
        time=events["time"],
        file_order=events["file_order"],
        columns=columns,
        has_time=summary["has_time"],
        folder=folder,
    )
    # in place of cached properties
    made.__dict__["user"] = events["user"]
    made.__dict__["fingerprint"] = _fingerprint(made, folder / "fingerprint")
    return made


def _fingerprint(made: Interactions, path: Path) -> str:
    """The dataset's fingerprint, from a file where it was computed before."""
    if not path.is_file():
        with atomically(path) as temporary:
            temporary.write_text(made.fingerprint)
    return path.read_text()


def _tokens(folder: Path, name: str) -> Any:
    return StoredTokens(folder / f"{name}.txt", np.load(folder / f"{name}.bounds.npy"))


class _Numbering:
    """Numbers the tokens of a column by first appearance, piece by piece.

    Tokens are known by two hashes of 64 bits. The first finds a token; where two tokens share it,
    which the second shows, nothing is numbered.

    Parameters
    ----------
    path : Path
        Where the tokens are written, in the order of their numbers.
    """

    def __init__(self, path: Path):
        self.file = open(path.with_suffix(".txt"), "wb")  # noqa: SIM115  # closed by `finish`
        self.bounds_path = path.with_name(f"{path.name}.bounds.npy")
        self.hashes = np.zeros(0, dtype=np.uint64)  # ascending
        self.seconds, self.numbers = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32)
        self.sizes: list[np.ndarray] = []
        self.count = 0

    def add(self, column: pd.Series) -> np.ndarray:
        """Number the tokens of a piece, int32 [rows]."""
        codes, tokens = pd.factorize(column)
        tokens = np.asarray(tokens, dtype=object)
        first, second = (
            pd.util.hash_array(tokens, hash_key=key, categorize=False)
            for key in ("0123456789123456", "6543219876543210")
        )
        place = np.searchsorted(self.hashes, first)
        inside = np.minimum(place, max(0, len(self.hashes) - 1))
        known = np.zeros(len(tokens), dtype=bool)
        if len(self.hashes):
            known = self.hashes[inside] == first
            if (self.seconds[inside[known]] != second[known]).any():
                raise NotInPiecesError("two ids have the same hash")
        number = np.empty(len(tokens), dtype=np.int32)
        number[known] = self.numbers[inside[known]]
        new = np.flatnonzero(~known)
        number[new] = self.count + np.arange(len(new))
        self.count += len(new)
        self._write(tokens[new])
        order = new[np.argsort(first[new], kind="stable")]
        if (np.diff(first[order]) == 0).any():
            raise NotInPiecesError("two ids have the same hash")
        self.hashes = np.insert(self.hashes, place[order], first[order])
        self.seconds = np.insert(self.seconds, place[order], second[order])
        self.numbers = np.insert(self.numbers, place[order], number[order])
        return number[codes]

    def _write(self, tokens: np.ndarray) -> None:
        encoded = [token.encode() for token in tokens]
        self.file.write(b"".join(encoded))
        self.sizes.append(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))

    def finish(self) -> None:
        """Write the bounds of the tokens, and forget the hashes."""
        self.file.close()
        bounds = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *self.sizes]))
        np.save(self.bounds_path, bounds)
        self.hashes = self.seconds = self.numbers = np.zeros(0, dtype=np.uint64)
        self.sizes = []

    def tokens(self) -> StoredTokens:
        """The tokens in the order of their numbers, after `finish`."""
        return StoredTokens(Path(self.file.name), np.load(self.bounds_path))


class _Builder:
    """The steps of making one store.

    Parameters
    ----------
    source : Source
        Which files to read and how to filter them.
    folder : Path
        Where the files are written.
    show : bool
        Whether a bar is drawn.
    """

    def __init__(self, source: whole.Source, folder: Path, show: bool):
        self.source, self.folder, self.show = source, folder, show
        types = whole.needed_columns(source)
        self.names, self.has_time = list(types), source.time_field in types
        self.numberings: dict[str, _Numbering] = {}
        for number, (name, kind) in enumerate(types.items()):
            if kind != "float":
                self.numberings[name] = _Numbering(folder / f"raw-{number}")
        kinds: list[tuple[str, Any]] = [(ROW, np.int64)]
        for name in dict.fromkeys([*types, source.time_field]):
            kinds.append((name, np.int32 if name in self.numberings else np.float64))
        self.kind = np.dtype(kinds)
        self.log: list[str] = []

    def run(self) -> None:
        """Make the files."""
        source = self.source
        self._check_settings()
        tables = self._filter_blocks(self._distribute(self._read()))
        if source.user_sample != 1:
            self._sample(tables)
        self.log += whole.core_lines(source, self._k_core(tables))
        if not sum(map(len, map(_mapped, tables))):
            raise whole.nothing_left(source, self.log)
        self._arrange(tables)
        for path in self.folder.glob("raw-*"):
            path.unlink()

    def _check_settings(self) -> None:
        """Raise UserError for a setting that fits no row, before any is read."""
        source, columns = self.source, {}
        for name in self.names:
            columns[name] = np.zeros(0, dtype=object if name in self.numberings else float)
        frame = pd.DataFrame(columns)
        with_time = frame if self.has_time else frame.assign(**{source.time_field: 0.0})
        whole.without_duplicates(with_time, source, self.has_time)
        for name, interval in source.value_intervals:
            whole.inside_interval(with_time, name, interval, source)
        whole.check_sample(source)
        whole.inside(np.zeros(0), source.user_interval, "user_inter_num_interval")
        whole.inside(np.zeros(0), source.item_interval, "item_inter_num_interval")

    def _read(self) -> Path:
        """Write the events as numbers, in the order of the file."""
        source, target = self.source, self.folder / "raw-events"
        path, rows, done = source.path("inter"), 0, 0
        size = path.stat().st_size
        bar = progress(desc="Read", total=size, disable=not self.show, unit="B", unit_scale=True)
        with bar, open(target, "wb") as file:
            for frame in read_pieces(path, set(self.names), source.separator, PIECE):
                whole.check_ids(source, frame, PART)
                if self.has_time:
                    whole.check_times(source, frame[source.time_field], self._cell, PART)
                self._numbers(frame).tofile(file)
                rows += len(frame)
                bar.update(min(PIECE, size - done))
                done += min(PIECE, size - done)
        for numbering in self.numberings.values():
            numbering.finish()
        self.log += whole.beginning_lines(source, rows, self.has_time)
        return target

    def _cell(self, row: int) -> str:
        """The time in a row of the file as it is written."""
        with open(self.source.path("inter"), "rb") as file:
            header, line = next(file), next(islice(file, row, None))
        names = list(whole.read_header(self.source.path("inter"), self.source.separator))
        separator = b"\t" if b"\t" in header else self.source.separator.encode()
        cell = line.rstrip(b"\r\n").split(separator)[names.index(self.source.time_field)]
        return cell.decode()

    def _numbers(self, frame: pd.DataFrame) -> np.ndarray:
        """Rows of a piece as numbers."""
        table = np.empty(len(frame), dtype=self.kind)
        table[ROW] = frame.index
        if not self.has_time:
            table[self.source.time_field] = frame.index
        for name in self.names:
            numbering = self.numberings.get(name)
            table[name] = numbering.add(frame[name]) if numbering else frame[name]
        return table

    def _pieces(self, path: Path) -> Iterator[np.ndarray]:
        """The rows of a file of events, some at a time."""
        with open(path, "rb") as file:
            while len(table := np.fromfile(file, dtype=self.kind, count=BLOCK)):
                yield table

    def _distribute(self, events: Path) -> list[Path]:
        """Write the events of each block of users into a file of its own."""
        user = self.source.user_field
        counts = np.zeros(self.numberings[user].count, dtype=np.int64)
        for table in self._pieces(events):
            counts += np.bincount(table[user], minlength=len(counts))
        block_of = ((np.cumsum(counts) - 1) // BLOCK).astype(np.int32)
        paths = [
            self.folder / f"raw-block-{number}" for number in range(block_of.max(initial=-1) + 1)
        ]
        for table in self._pieces(events):
            block = block_of[table[user]]
            order = np.argsort(block, kind="stable")
            bounds = np.searchsorted(block[order], np.arange(len(paths) + 1))
            for number in np.unique(block).tolist():
                with open(paths[number], "ab") as file:
                    table[order[bounds[number] : bounds[number + 1]]].tofile(file)
        events.unlink()
        return [path for path in paths if path.is_file()]

    def _filter_blocks(self, blocks: list[Path]) -> list[Path]:
        """Apply the filters that look at one event or user; what remains, as .npy files."""
        source, counts = self.source, Counter[str]()
        described = None
        if source.need_item_row and source.path("item").is_file():
            items = pd.Index(np.asarray(self.numberings[source.item_field].tokens()))
            described = items.isin(whole.described_items(source))
        tables = []
        for block in blocks:
            table = np.fromfile(block, dtype=self.kind)
            frame = pd.DataFrame({name: table[name] for name in table.dtype.names or ()})
            frame = whole.without_duplicates(frame, source, self.has_time)
            counts["duplicates"] += len(table) - len(frame)
            for name, interval in source.value_intervals:
                kept = whole.inside_interval(frame, name, interval, source)
                counts[f"value {name}"] += int((~kept).sum())
                frame = frame[kept]
            if described is not None:
                kept = described[frame[source.item_field].to_numpy()]
                counts["described"] += int((~kept).sum())
                frame = frame[kept]
            block.unlink()
            tables.append(self._save(block, frame))
        self.log += whole.duplicates_lines(source, counts["duplicates"])
        for name, interval in source.value_intervals:
            self.log.append(whole.values_line(name, interval, counts[f"value {name}"]))
        self.log += whole.described_lines(source, counts["described"])
        return tables

    def _save(self, path: Path, frame: pd.DataFrame) -> Path:
        """Store the remaining rows of a block."""
        # a column that nothing reads any more may have been left out
        names = [name for name in self.kind.names or () if name in frame]
        table = np.empty(len(frame), dtype=[(name, self.kind[name]) for name in names])
        for name in names:
            table[name] = frame[name]
        target = path.with_name(f"{path.name}.npy")
        np.save(target, table)
        return target

    def _sample(self, tables: list[Path]) -> None:
        """Keep the events of a sample of the remaining users."""
        source, user = self.source, self.source.user_field
        is_left = np.zeros(self.numberings[user].count, dtype=bool)
        for table in tables:
            is_left[_mapped(table)[user]] = True
        tokens = self.numberings[user].tokens()[np.flatnonzero(is_left)]
        sample = whole.sample_users(tokens, source)
        self.log.append(whole.sample_line(source, len(sample), len(tokens)))
        is_drawn = np.zeros(len(is_left), dtype=bool)
        is_drawn[np.flatnonzero(is_left)[np.isin(tokens, sample)]] = True
        for path in tables:
            table = np.load(path)
            np.save(path, table[is_drawn[table[user]]])

    def _k_core(self, tables: list[Path]) -> int:
        """Drop rare users and items until none is left; the number of dropped events."""
        source, dropped = self.source, 0
        bounds = {
            source.user_field: (source.user_interval, "user_inter_num_interval"),
            source.item_field: (source.item_interval, "item_inter_num_interval"),
        }
        while True:
            stays = {}
            for name, (interval, key) in bounds.items():
                counts = np.zeros(self.numberings[name].count, dtype=np.int64)
                for table in map(_mapped, tables):
                    counts += np.bincount(table[name], minlength=len(counts))
                stays[name] = whole.inside(counts, interval, key)
            before = dropped
            for path in tables:
                table = np.load(path)
                kept = np.logical_and.reduce([stays[name][table[name]] for name in bounds])
                dropped += int((~kept).sum())
                if not kept.all():
                    np.save(path, table[kept])
            if dropped == before:
                return dropped

    def _arrange(self, tables: list[Path]) -> None:
        """Write the remaining events by user and time, and what else is in the store."""
        source, total = self.source, sum(map(len, map(_mapped, tables)))
        names = _mapped(tables[0]).dtype.names or ()
        core = (ROW, source.user_field, source.item_field, source.time_field)
        columns = [name for name in names if name not in core]
        user_of = self._renumber(source.user_field, "users", tables)
        item_of = self._renumber(source.item_field, "items", tables)
        column_of = {
            name: self._renumber(name, f"column-{number}", tables)
            for number, name in enumerate(columns)
            if name in self.numberings
        }
        numbers_of = {
            "item": (source.item_field, item_of),
            "time": (source.time_field, None),
            "user": (source.user_field, user_of),
        }
        counts = np.zeros(int(user_of.max()) + 1, dtype=np.int64)
        rows = 0
        for table in map(_mapped, tables):
            counts += np.bincount(user_of[table[source.user_field]], minlength=len(counts))
            rows = max(rows, int(table[ROW].max(initial=-1)) + 1)
        start = np.concatenate([[0], np.cumsum(counts)])
        np.save(self.folder / "start.npy", start)
        # by the names of files: a column of the dataset may be called as an event's
        made = {name: self._array(name, kind, total) for name, kind in EVENTS.items()}
        for number, name in enumerate(columns):
            file = f"column-{number}"
            made[file] = self._array(file, self.kind[name], total)
            numbers_of[file] = (name, column_of.get(name))
        place_of = np.memmap(self.folder / "raw-places", np.int64, "w+", shape=rows)
        for begin in range(0, rows, BLOCK):
            place_of[begin : begin + BLOCK] = -1
        for path in tables:
            table = np.load(path)
            user = user_of[table[source.user_field]]
            order = np.lexsort((table[source.time_field], user))
            table, user = table[order], user[order]
            # places of a user's events follow each other
            firsts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]][: len(user)])
            sizes = np.diff(np.append(firsts, len(user)))
            place = np.repeat(start[user[firsts]] - firsts, sizes) + np.arange(len(user))
            place_of[table[ROW]] = place
            for target, (name, numbers) in numbers_of.items():
                made[target][place] = table[name] if numbers is None else numbers[table[name]]
        self._write_file_order(place_of, made["file_order"])
        for array in made.values():
            array.flush()
        self._finish(columns)

    def _write_file_order(self, place_of: np.ndarray, file_order: np.ndarray) -> None:
        """Write the places of the remaining events, in the order of the file."""
        done = 0
        for begin in range(0, len(place_of), BLOCK):
            places = place_of[begin : begin + BLOCK]
            places = places[places >= 0]
            file_order[done : done + len(places)] = places
            done += len(places)

    def _array(self, name: str, kind: Any, size: int) -> np.memmap:
        path = self.folder / f"{name}.npy"
        return np.lib.format.open_memmap(path, "w+", dtype=kind, shape=(size,))

    def _renumber(self, name: str, target: str, tables: list[Path]) -> np.ndarray:
        """Number the remaining tokens of a column by first appearance in the file, and store them.

        Returns number before -> number now, int32; -1 for a token that is left out.
        """
        numbering = self.numberings[name]
        first = np.full(numbering.count, np.iinfo(np.int64).max)
        for table in map(_mapped, tables):
            by_row = np.argsort(table[ROW], kind="stable")
            numbers, places = np.unique(table[name][by_row], return_index=True)
            first[numbers] = np.minimum(first[numbers], table[ROW][by_row[places]])
        remaining = np.flatnonzero(first < np.iinfo(np.int64).max)
        order = remaining[np.argsort(first[remaining])]
        now = np.full(len(first), -1, dtype=np.int32)
        now[order] = np.arange(len(order))
        tokens = numbering.tokens()
        begins, ends = tokens.bounds[order], tokens.bounds[order + 1]
        with open(self.folder / f"{target}.txt", "wb") as file:
            for at in range(0, len(order), TOKENS):
                places = ranges(begins[at : at + TOKENS], ends[at : at + TOKENS])
                file.write(tokens.text[places].tobytes())
        bounds = np.concatenate([[0], np.cumsum(ends - begins)])
        np.save(self.folder / f"{target}.bounds.npy", bounds)
        return now

    def _finish(self, columns: list[str]) -> None:
        """Write the summary, without which a store is none."""
        files = [path for path in self.folder.iterdir() if not path.name.startswith("raw-")]
        summary = {
            "columns": columns,
            "has_time": self.has_time,
            "log": self.log,
            "sizes": {path.name: path.stat().st_size for path in files},
        }
        (self.folder / SUMMARY).write_text(json.dumps(summary))


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
