"""Data that a device gathers itself: where they come from, how they are kept, how they change."""
