"""Do two adapters or models give the same outputs? Kinds, inputs, reloads and the verdict."""
