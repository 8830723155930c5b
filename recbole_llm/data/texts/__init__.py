"""Items as texts, and texts as words."""
