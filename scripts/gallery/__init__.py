"""What scripts/method_gallery.py is made of: where a method acts, its schematic, and its card."""
