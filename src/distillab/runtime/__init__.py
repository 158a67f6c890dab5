"""Devices, reproducibility, files and run folders: nothing here knows of models or methods."""
