"""Where cells run: in this process and its workers, or on a Ray cluster."""
