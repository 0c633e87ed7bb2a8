"""Published measurements, and our predictions of them."""
