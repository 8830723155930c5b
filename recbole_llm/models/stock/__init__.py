"""RecBole's models: corrections, and item texts in place of ids."""
