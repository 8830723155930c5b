"""One table from the runs of several models: mean ± sd over seeds, best and second marked."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..storage.files import write_text
from ..storage.screen import printable

LATEX = str.maketrans(
    {char: rf"\{char}" for char in "_%&#${}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "†": r"$^\dagger$",
        "–": "--",
    }
)


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes
    ----------
    mean : float
        Mean over seeds.
    sd : float or None
        Standard deviation over seeds; None for a single one.
    place : int
        1 for the best of its column, 2 for the second, else 0.
    mark : str
        Significance against the best of the others.
    digits : int
        Digits after the point.
    """

    mean: float
    sd: float | None = None
    place: int = 0
    mark: str = ""
    digits: int = 4


Row = tuple[str, tuple[Cell | None, ...]]  # a name, and a cell for each column that it has


@dataclass(frozen=True)
class Table:
    """A table with its title, its rows, and notes below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def make_table(
    title: str,
    results: Mapping[str, Sequence[Mapping[str, float]]],
    columns: Sequence[str],
    *,
    bounds: Mapping[str, Mapping[str, float]] | None = None,
    marks: Mapping[tuple[str, str], str] | None = None,
    notes: Sequence[str] = (),
    lower: bool = False,
    covers: Mapping[str, str] | None = None,
) -> Table:
    """Build a table.

    Parameters
    ----------
    title : str
        Its first line.
    results : mapping
        Name of a row -> the metrics of each of its seeds.
    columns : sequence of str
        Names of metrics.
    bounds : mapping, optional
        Rows that compete for nothing, such as the Bayes ranking of a synthetic world.
    marks : mapping, optional
        (row, column) -> mark of significance.
    notes : sequence of str
        Lines below the table.
    lower : bool
        Whether the best is the lowest.
    covers : mapping, optional
        Name of a row -> what its numbers cover, such as "340 of 624 users", where that is less
        than those of the others do. The row says so and competes for nothing, because numbers of
        other cases do not compare.

    Examples
    --------
    >>> table = make_table("Pet", {"Pop": [{"mrr": 0.1}], "LIR": [{"mrr": 0.2}]}, ["mrr"])
    >>> print(to_screen(table))
    Pet
             mrr
    Pop  0.1000'
    LIR  0.2000*
    * best, ' second
    """
    covers = covers or {}
    seeds = {name: _by_column(runs, columns) for name, runs in results.items()}
    competing = {name: values for name, values in seeds.items() if name not in covers}
    places = {column: _places(competing, column, lower) for column in columns}
    rows: list[Row] = []
    for name, values in seeds.items():
        cells = [
            _cell(values[column], places[column].get(name, 0), (marks or {}).get((name, column)))
            for column in columns
        ]
        shown = f"{name} ({covers[name]})" if name in covers else name
        rows.append((shown, tuple(cells)))
    for name, bound in (bounds or {}).items():
        limits = [Cell(bound[column]) if column in bound else None for column in columns]
        rows.append((name, tuple(limits)))
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def _by_column(
    runs: Sequence[Mapping[str, float]], columns: Sequence[str]
) -> dict[str, list[float]]:
    """Each column's values over the seeds of a row."""
    values: dict[str, list[float]] = {}
    for column in columns:
        values[column] = [run[column] for run in runs if column in run]
    return values


def _places(
    seeds: Mapping[str, Mapping[str, Sequence[float]]], column: str, lower: bool
) -> dict[str, int]:
    """Rows with the best and the second value of a column; nothing where nobody competes."""
    means = {name: float(np.mean(one[column])) for name, one in seeds.items() if one[column]}
    places: dict[str, int] = {}
    if len(means) < 2:
        return places
    best_levels = sorted(set(means.values()), reverse=not lower)[:2]
    for rank, level in enumerate(best_levels, start=1):
        places |= {name: rank for name, mean in means.items() if mean == level}
    return places


def _cell(values: Sequence[float], place: int, mark: str | None) -> Cell | None:
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(float(np.mean(values)), sd, place, mark or "")


def _number(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    sd = "" if cell.sd is None else f" ± {cell.sd:.4f}"
    return f"{cell.mean:.{cell.digits}f}{sd}{cell.mark}"


def _place(cell: Cell | None) -> int:
    return cell.place if cell else 0


def to_screen(table: Table) -> str:
    """Write a table as plain text; the best of a column carries *, the second '."""
    sign = {0: " ", 1: "*", 2: "'"}
    grid = [["", *table.columns]]
    for name, cells in table.rows:
        grid.append([name, *(_number(cell) + sign[_place(cell)] for cell in cells)])
    first, *widths = (max(map(len, column)) for column in zip(*grid, strict=True))
    lines = []
    for name, *numbers in grid:
        aligned = map(str.rjust, numbers, widths)
        lines.append("  ".join([name.ljust(first), *aligned]).rstrip())
    legend = ["* best, ' second"] if _has_places(table) else []
    return printable("\n".join([table.title, *lines, *legend, *table.notes]))


def _has_places(table: Table) -> bool:
    return any(any(map(_place, cells)) for _, cells in table.rows)


def to_markdown(table: Table) -> str:
    """Write a table as Markdown: the best bold, the second underlined."""
    style = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    lines = [
        "| | " + " | ".join(map(_in_markdown, table.columns)) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    for name, cells in table.rows:
        numbers = " | ".join(style[_place(cell)].format(_number(cell)) for cell in cells)
        lines.append(f"| {_in_markdown(name)} | {numbers} |")
    notes = [f"- {_in_markdown(note)}" for note in table.notes]
    if _has_places(table):
        notes.insert(0, "- **best**, <u>second</u>")
    return "\n".join([f"**{_in_markdown(table.title)}**", "", *lines, "", *notes])


def _in_markdown(text: str) -> str:
    """Text that is neither markup nor the end of a table's cell."""
    return escape(printable(text), quote=False).replace("|", r"\|")


def to_latex(table: Table) -> str:
    """Write a table for booktabs: the best bold, the second underlined, notes as comments."""
    style = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    grid = [["", *(column.translate(LATEX) for column in table.columns)]]
    for name, cells in table.rows:
        numbers = [style[_place(cell)].format(_number(cell).translate(LATEX)) for cell in cells]
        grid.append([name.translate(LATEX), *numbers])
    head, *body = (" & ".join(row) + r" \\" for row in grid)
    text = [
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {line}" for line in (table.title, *table.notes)),
    ]
    return printable("\n".join(text))


def to_csv(table: Table) -> str:
    """Write a table in full precision: a row's name, then mean and sd of each column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model"]
    for column in table.columns:
        head += [column, f"{column}_sd"]
    writer.writerow(head)
    for name, cells in table.rows:
        values: list[float | str | None] = [name]
        for cell in cells:
            values += (cell.mean, cell.sd) if cell else (None, None)
        writer.writerow(values)
    return printable(out.getvalue())


def write(table: Table, folder: Path, name: str = "table") -> None:
    """Write a table as Markdown, LaTeX and CSV.

    Parameters
    ----------
    table : Table
        The table.
    folder : Path
        For the files; it is made.
    name : str
        Their name without the ending.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, made in (("md", to_markdown), ("tex", to_latex), ("csv", to_csv)):
        write_text(folder / f"{name}.{suffix}", made(table))
