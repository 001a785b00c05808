"""Experiments: from a recipe to runs, their records, and their resumption."""
