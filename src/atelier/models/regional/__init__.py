"""Rich-context layout to image (arXiv 2409.04847): cross-attention in which each region of overlapping boxes reads its
own objects' descriptions."""
