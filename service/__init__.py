"""Onestep: serves consistency models (Song, Dhariwal, Chen, Sutskever 2023) over HTTP."""

__version__ = "0.1.0"
