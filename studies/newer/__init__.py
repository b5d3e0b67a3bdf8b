"""Objectives of later papers on Countdown, in the protocol of the paper's study: one base, one learning rate, three seeds."""
