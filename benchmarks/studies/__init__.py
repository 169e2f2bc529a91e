"""Controlled runs, minutes long each and started by hand: what a choice is worth, not how fast it is."""
