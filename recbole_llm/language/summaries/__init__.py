"""Long histories condensed to texts by a language model that is not trained."""
