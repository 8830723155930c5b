"""Ranks of targets, the metrics computed from them, and tests of the difference between two runs."""
