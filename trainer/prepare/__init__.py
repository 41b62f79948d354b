"""Data preparation: raw files in, `schema.yaml`, a data card and Parquet splits out.

`sources` has a module for each dataset: a function `prepare_<name>` from the raw files to the folder that it writes.
`engine` is what they share: splits, vocabularies, the writer of the layout, and tables of any size within a memory
limit. `generate` writes files in the raw formats.
"""
