"""Judging: metrics with intervals, tasks, the harness, and a look inside one text."""
