"""Reactions to the events of a run. The trainer calls each by name, in the order that its code shows."""
