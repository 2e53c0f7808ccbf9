"""What `scripts/stress.py` does to the toolkit, and how it judges what comes of it."""
