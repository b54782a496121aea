"""The commands under `actstats analyze`: read options, call one function of `actstats.analysis`, print."""
