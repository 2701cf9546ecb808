"""Counters, and the texts made of them."""
