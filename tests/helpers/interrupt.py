"""Interrupt a training run at a step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class _At(logging.Handler):
    """Interrupts the process as Ctrl-C does when a step is logged."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def emit(self, record):
        if f"step {self.step}/" in record.getMessage():
            raise KeyboardInterrupt


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Interrupt the run of this block when it logs a step; at INFO, steps are logged."""
    logger, handler = logging.getLogger("agentsafe.training.callbacks"), _At(step)
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        logger.removeHandler(handler)
