"""The header of a GGUF file (llama.cpp's format), checked against the file's size before anything is read by it."""

from pathlib import Path


def check(path: Path) -> None:
    pass
