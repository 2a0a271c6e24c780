"""What is compared: one engine a file."""
