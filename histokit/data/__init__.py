"""Slides and counts as they come, and the extracted cohort that a training reads."""
