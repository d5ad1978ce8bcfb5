"""The mathematics of consistency models. `schedule` and `operators` import no torch; the rest does."""
