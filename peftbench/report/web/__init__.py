"""The report as one page for a browser: `index.html`, which needs no network and no other file."""
