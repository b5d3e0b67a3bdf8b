"""Training: the loop (`loop`), what one run uses (`run`), and what each line of the loop does."""
