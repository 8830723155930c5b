"""Item texts, and the words of a text."""
