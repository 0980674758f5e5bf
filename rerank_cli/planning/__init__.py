"""What will run on this machine, and whether it fits; nothing here loads torch."""
