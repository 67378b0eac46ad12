"""Entropy coders: arrays of integers and strings of bytes in, bytes out, nothing known of graphs."""
