"""What can be drawn, how it is asked for, and what a finished picture shows."""
