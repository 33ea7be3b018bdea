"""Text-to-image generators."""
