"""Ranks of targets, metrics computed from them, and tests of differences between runs."""
