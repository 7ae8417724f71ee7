"""Stages (pseudo pre-training, supervised, P-SSL), their losses, evaluation and checkpoints."""
