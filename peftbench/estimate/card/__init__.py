"""What a graphics card adds: its allocator, its rates, its price, and whether a step fits."""
