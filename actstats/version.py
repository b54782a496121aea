"""The version of actstats, which pages, packages and the manifest of each store take from here."""

__version__ = "0.2.0"
