"""Answering prompts with the strategy that was trained for: in a process (`best`), and over HTTP (`app`)."""
