"""The one loop: losses, optimizers and ``fit``; it is told what to validate and how to save."""

from stockpot.train import losses

__all__ = ["losses"]
