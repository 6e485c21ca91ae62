"""One script for each question of speed."""
