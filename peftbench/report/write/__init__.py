"""The report's files: written whole, kept up to date, checked byte for byte."""
