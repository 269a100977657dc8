"""From documents to chunks that examples can be written from."""
