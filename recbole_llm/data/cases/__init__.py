"""The cases of a dataset: its splits, their candidates and augmented views."""
