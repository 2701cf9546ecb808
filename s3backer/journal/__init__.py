"""The write journal: every write, in order, on the local disk before it is acknowledged (``format.py`` draws it)."""
