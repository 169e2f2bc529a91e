"""GenEval (arXiv 2310.11513): whether a picture shows the objects, counts, colours and places of its prompt."""
