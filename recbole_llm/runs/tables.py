"""One table from the runs of several models: mean ± sd over seeds, best and second marked."""

import csv
import io
from collections.abc import Sequence
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
    """One number of the table. place is 1 for the best of its column, 2 for the second, else 0."""

    mean: float
    sd: float | None = None
    place: int = 0
    mark: str = ""  # significance against the best of the others
    digits: int = 4  # after the point


@dataclass(frozen=True)
class Table:
    """rows[r] is (name, one Cell or None per column); notes are printed below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    notes: tuple[str, ...] = ()


def make_table(title: str, results: dict[str, Sequence[dict]], columns: Sequence[str], *, bounds: dict[str, dict] | None = None,
               marks: dict[tuple[str, str], str] | None = None, notes: Sequence[str] = (), lower: bool = False,
               covers: dict[str, str] | None = None) -> Table:  # fmt: skip
    """Build a table.

    Parameters
    ----------
    results : model -> one metric dict per seed.
    bounds : rows that compete for nothing, such as the Bayes ranking of a synthetic world.
    marks : (model, column) -> significance mark.
    lower : the best is the lowest.
    covers : model -> what its numbers cover, such as "340 of 624 users", where that is less than the others' do. Its row
        says so, and competes for nothing: numbers of other cases do not compare.
    """
    marks, covers = marks or {}, covers or {}
    means = {
        name: {column: [run[column] for run in runs if column in run] for column in columns}
        for name, runs in results.items()
    }
    place: dict[tuple[str, str], int] = {}
    for column in columns:
        scores = {
            name: float(np.mean(values[column]))
            for name, values in means.items()
            if values[column] and name not in covers
        }
        if len(scores) < 2:
            continue  # nothing to be better than
        for rank, level in enumerate(sorted(set(scores.values()), reverse=not lower)[:2], start=1):
            place |= {(name, column): rank for name, score in scores.items() if score == level}
    rows = []
    for name, values in means.items():
        cells = []
        for column in columns:
            seen = values[column]
            sd = float(np.std(seen, ddof=1)) if len(seen) > 1 else None
            cells.append(
                Cell(
                    float(np.mean(seen)),
                    sd,
                    place.get((name, column), 0),
                    marks.get((name, column), ""),
                )
                if seen
                else None
            )
        shown = f"{name} ({covers[name]})" if name in covers else name
        rows.append((shown, tuple(cells)))
    for name, values in (bounds or {}).items():
        rows.append(
            (name, tuple(Cell(values[column]) if column in values else None for column in columns))
        )
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def _number(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return (
        f"{cell.mean:.{cell.digits}f}"
        + (f" ± {cell.sd:.4f}" if cell.sd is not None else "")
        + cell.mark
    )


def to_screen(table: Table) -> str:
    """Plain text; the best of a column carries *, the second '."""
    sign = {0: " ", 1: "*", 2: "'"}
    grid = [["", *table.columns]] + [
        [name, *(_number(cell) + sign[cell.place if cell else 0] for cell in cells)]
        for name, cells in table.rows
    ]
    first, *widths = (max(map(len, column)) for column in zip(*grid, strict=True))
    lines = [
        "  ".join([name.ljust(first), *map(str.rjust, row, widths)]).rstrip() for name, *row in grid
    ]
    legend = ["* best, ' second"] if _marked(table) else []
    return printable("\n".join([table.title, *lines, *legend, *table.notes]))


def _marked(table: Table) -> bool:
    return any(cell and cell.place for _, cells in table.rows for cell in cells)


def to_markdown(table: Table) -> str:
    """Best bold, second underlined."""
    style = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    lines = [
        "| | " + " | ".join(map(_in_markdown, table.columns)) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    for name, cells in table.rows:
        lines.append(
            f"| {_in_markdown(name)} | "
            + " | ".join(style[cell.place if cell else 0].format(_number(cell)) for cell in cells)
            + " |"
        )
    legend = ["**best**, <u>second</u>"] if _marked(table) else []
    return "\n".join(
        [
            f"**{_in_markdown(table.title)}**",
            "",
            *lines,
            "",
            *(f"- {line}" for line in [*legend, *map(_in_markdown, table.notes)]),
        ]
    )


def _in_markdown(text: str) -> str:
    """Text that is neither markup nor the end of a table's cell."""
    return escape(printable(text), quote=False).replace("|", r"\|")


def to_latex(table: Table) -> str:
    """For booktabs: best bold, second underlined; title and notes as comments."""
    style = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    grid = [["", *(column.translate(LATEX) for column in table.columns)]]
    for name, cells in table.rows:
        grid.append(
            [
                name.translate(LATEX),
                *(
                    style[cell.place if cell else 0].format(_number(cell).translate(LATEX))
                    for cell in cells
                ),
            ]
        )
    head, *body = (" & ".join(row) + r" \\" for row in grid)
    begin, end = r"\begin{tabular}{l" + "r" * len(table.columns) + "}", r"\end{tabular}"
    text = "\n".join(
        [
            begin,
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            end,
            *(f"% {line}" for line in (table.title, *table.notes)),
        ]
    )
    return printable(text)


def to_csv(table: Table) -> str:
    """Full precision: model, then mean and sd of every column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["model", *(name for column in table.columns for name in (column, f"{column}_sd"))]
    )
    for name, cells in table.rows:
        writer.writerow(
            [
                name,
                *(
                    value
                    for cell in cells
                    for value in ((cell.mean, cell.sd) if cell else (None, None))
                ),
            ]
        )
    return printable(out.getvalue())


def write(table: Table, folder: Path, name: str = "table") -> None:
    """As <name>.md, .tex and .csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, made in (("md", to_markdown), ("tex", to_latex), ("csv", to_csv)):
        write_text(folder / f"{name}.{suffix}", made(table))
