"""The mathematics of consistency models. `schedule` imports no torch; the rest does."""
