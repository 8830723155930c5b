"""What models of one kind share: text, vectors, generation, judgement."""
