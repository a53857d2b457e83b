"""Decisions from scores and signals: duplicates, thresholds, budgets, samples."""
