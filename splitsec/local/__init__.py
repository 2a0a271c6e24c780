"""All parties of a run on this machine."""
