"""What a job may ask, its life, and its reply. Pure but for clocks."""
