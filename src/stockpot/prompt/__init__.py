"""Asking well: wordings, examples, steps, soft prompts and retrieved passages, without training a weight."""
