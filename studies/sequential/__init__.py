"""Is it worth training for a strategy that stops? A study beside that of the paper (`studies/paper`), with its counts."""
