"""What has been measured, kept: rows in a JSON file, parts that go on where they were ended, plots."""
