"""Commands over many runs (experiments, searches, personalization), and the use of one run."""
