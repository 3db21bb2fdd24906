"""One file for each family of models: a map of settings and a map of names, used in both directions."""
