"""Run networks over images: the loop below `actstats.sweeping` and `actstats.probing`."""
