"""Whole jobs: build a task from its config, train, compare, synthesise, make a source pair, inspect the machine."""
