"""What the two commands are made of."""
