"""Classifiers: open_clip's, a ResNet, and the reader of printed characters."""
