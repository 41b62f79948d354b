"""Files in exactly the raw formats of public datasets, of any size, for tests and for measuring preparations.

Everything about a row is a hash of (seed, what it is, row): the bytes depend on seed and number of rows alone.
Values are long-tailed, with about the numbers of values and the shares of missing ones of the originals; labels
depend on the values, so that a model can learn them.
"""
