"""`cetnet study`: variants x seeds are trained, compared and reported."""
