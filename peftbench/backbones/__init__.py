"""Base models: sites by role over transformers networks, the embedded presets, and how they are loaded."""
