"""Learning tasks: what to learn, from which data."""

from fl_client.tasks.registry import load_task, names

__all__ = ["load_task", "names"]
