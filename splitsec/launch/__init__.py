"""Starting all parties of a run."""
