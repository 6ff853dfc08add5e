"""Pictures in and out: opened, masked, stood in for, encoded and delivered."""
