"""Every socket of a job: pictures and LoRAs by URL, buckets, the hub's files."""
