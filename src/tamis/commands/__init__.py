"""The commands, by what they are for. Each builds a recipe or opens a workspace.

Nothing heavy is imported before a command runs, so that ``tamis --help`` answers at once.
"""
