"""A task, a method and a voter that `scale-run --task letter-count --method question-words --voter concise` finds."""
