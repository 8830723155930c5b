"""Datasets: reading, cases, texts, RecBole's classes over them, the sample, and preparation."""
