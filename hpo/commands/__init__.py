"""The commands of `hpo` beside those that run experiments and read the store; each module adds its own to `hpo.cli`."""
