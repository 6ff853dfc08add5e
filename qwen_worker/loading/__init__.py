"""From files to a pipeline in memory, once, or the reason why not."""
