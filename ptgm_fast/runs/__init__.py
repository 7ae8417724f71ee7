"""Whole jobs: build a task from its config, train, compare, synthesize, make a source pair, inspect the machine."""
