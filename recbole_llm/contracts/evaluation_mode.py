"""Which items a case's target is ranked among: RecBole's `full` and `uniK`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class EvaluationMode:
    """The items that are ranked for each case.

    Attributes
    ----------
    candidates : int or None
        Number of negative items beside the target; None for the whole catalogue.
    """

    candidates: int | None = None

    @classmethod
    def parse(cls, text: object) -> "EvaluationMode":
        """Read a value of `eval_args.mode`.

        Raises
        ------
        UserError
            If it is neither `full` nor `uniK`.

        Examples
        --------
        >>> EvaluationMode.parse("uni100").candidates
        100
        >>> EvaluationMode.parse("full").is_full
        True
        """
        if text == "full":
            return cls()
        if not re.fullmatch(r"uni[1-9]\d*", str(text)):
            raise UserError(f"eval_args.mode: expected full or uniK such as uni20, found {text!r}")
        return cls(int(str(text)[3:]))

    @classmethod
    def of_part(cls, mode: str | Mapping[str, str], part: str) -> "EvaluationMode":
        """Read the mode of one part of the cases.

        Parameters
        ----------
        mode : str or mapping
            One mode for all parts, or one for each: `{"valid": "uni100", "test": "full"}`. A part
            that is not there has the mode of the other.
        part : str
            "valid" or "test".
        """
        if isinstance(mode, Mapping):
            mode = mode.get(part, next(iter(mode.values())))
        return cls.parse(mode)

    @property
    def is_full(self) -> bool:
        """Whether the whole catalogue is ranked."""
        return self.candidates is None
