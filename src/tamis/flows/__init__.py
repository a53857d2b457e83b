"""Runs of a recipe: the steps and their order."""
