"""The command `segjax`, a file for each of its commands."""
