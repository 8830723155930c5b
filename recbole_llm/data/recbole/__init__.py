"""RecBole's Dataset classes and data loaders over the interactions."""
