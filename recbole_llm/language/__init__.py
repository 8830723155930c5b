"""Language models and what surrounds them: prompts, tokens, decoding, matching, summaries."""
