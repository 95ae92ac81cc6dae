"""Compiling for chips that are not here, and counting in what comes out."""
