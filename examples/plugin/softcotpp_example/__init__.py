"""A method and a voter that `scale-run --method question-words --voter concise` finds."""
