"""A sweep: from images and a network to a store."""
