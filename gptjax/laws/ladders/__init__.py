"""Ladders compared: by how much compute the one beats the other."""
