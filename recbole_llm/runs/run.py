"""A finished run: its folder and its result row."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..storage import run_folders
from .result_row import ResultRow

if TYPE_CHECKING:
    from ..evaluation.ranks import RankTable


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    folder : Path
        The run's folder.
    row : dict
        Its line of `results.jsonl`, see :class:`recbole_llm.runs.result_row.ResultRow`.
    """

    folder: Path
    row: ResultRow = field(repr=False)

    @property
    def part(self) -> str:
        """The cases that were measured: "test", or "valid" for an evaluation on those alone."""
        return self.row.get("part", "test")

    @property
    def values(self) -> dict[str, float]:
        """Metric -> value, of `part`."""
        values: dict[str, float] = self.row[self.part]  # type: ignore[literal-required]  # a part
        return values

    def ranks(self, part: str | None = None) -> "RankTable":
        """Read the rank of every case's target.

        Parameters
        ----------
        part : str, optional
            "test" or "valid"; the run's `part` by default.

        Returns
        -------
        RankTable

        Raises
        ------
        UserError
            If the table is missing or damaged, or if the metrics of the row are not those of its
            ranks.
        """
        from ..evaluation.metrics import differing
        from ..evaluation.ranks import RankTable

        part = part or self.part
        path = self.folder / run_folders.RANKS.format(part=part)
        table = RankTable.load(path)
        wrong: dict[str, tuple[float, float]] = {}
        if part == self.part and self.row["cases"] != len(table):
            wrong = {"cases": (self.row["cases"], len(table))}
        elif len(table):
            grouped = bool((self.row.get("evaluation") or {}).get("group_by_user"))
            values = self.row[part]  # type: ignore[literal-required]  # a part
            wrong = differing(values, table, grouped)
        for name, (stored, computed) in wrong.items():
            raise UserError(
                f"{self.folder / run_folders.RUN}: {part} {name} is {stored:.10g}, and by the "
                f"ranks in {path.name} it is {computed:.10g}: "
                f"one of the two files is damaged or another run's; remove {path}, and "
                f"{run_folders.ranked_again(self.folder)}"
            )
        return table
