"""Base models: networks with sites by role, the embedded presets, and how they are loaded."""
