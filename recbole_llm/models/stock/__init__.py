"""RecBole's models where they need mending, or item texts in place of ids."""
