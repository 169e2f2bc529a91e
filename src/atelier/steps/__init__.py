"""Steps: one file a component; each wires a recipe to data, training, conversion … and publishes what came out."""
