"""Which objects hold which bytes."""
