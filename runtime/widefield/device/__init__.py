"""A GPU's memory and streams, as few as a run needs, and the order in which tiles go through them."""
