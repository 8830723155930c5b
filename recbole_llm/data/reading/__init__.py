"""Atomic and pre-split files read into arrays."""
