"""Signals and scores: models and mathematics, no policy."""
