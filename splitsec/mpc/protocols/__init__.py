"""Protocols on shares, one paper a file."""
