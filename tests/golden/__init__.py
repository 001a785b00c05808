"""Exact expected values, and how each strategy is run against them."""
