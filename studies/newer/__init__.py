"""Objectives of later papers on Countdown, as the paper's study trains: one base, one learning rate, three seeds."""
