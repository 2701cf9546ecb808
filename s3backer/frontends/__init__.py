"""What shows a volume to the outside: FUSE."""
