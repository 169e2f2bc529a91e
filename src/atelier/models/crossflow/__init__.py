"""CrossFlow (arXiv 2412.15213): text to image by flow matching, from the text's own latent instead of noise."""
