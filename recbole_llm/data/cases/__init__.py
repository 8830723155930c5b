"""Who is predicted what: splits, candidates, augmentation."""
