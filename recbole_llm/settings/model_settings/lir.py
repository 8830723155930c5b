"""Settings of LIR."""

from typing import ClassVar

from pydantic import Field

from ..groups import Bm25Settings, UntrainedSettings


class LIRSettings(UntrainedSettings, Bm25Settings):
    """The newest items of a history, as the query of a search by words (BM25)."""

    example: ClassVar[str] = "--model=LIR --dataset=ml-100k"
    last_n: int = Field(1, ge=1, description="How many of the newest items make the query.")
