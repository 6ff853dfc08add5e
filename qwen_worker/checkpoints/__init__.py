"""A model's files before they are loaded: what they are, whether they are whole, what two have in common."""
