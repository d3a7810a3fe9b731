"""Annoris: sessions of work that survive the conversation they were made in."""

__version__ = "0.1.0"
