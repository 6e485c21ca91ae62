"""Biased matrix factorization on ratings that do not fit in memory."""
