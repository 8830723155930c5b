"""Preparation of datasets: from raw files to RecBole's atomic files."""
