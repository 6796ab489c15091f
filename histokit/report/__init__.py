"""The page and its pictures; knows nothing of models or data."""
