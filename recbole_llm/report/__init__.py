"""Tables of results for the screen, Markdown, LaTeX and CSV."""
