"""LoRAs from the path that names one to the layers that add it."""
