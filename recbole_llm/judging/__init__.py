"""Yes or No to a candidate: prompts that share what precedes it, read once."""
