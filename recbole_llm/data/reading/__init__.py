"""RecBole's atomic and pre-split files, read into arrays."""
