"""Data preparation: raw files in, `schema.yaml`, a data card and Parquet splits out.

One module a source; `dataset` holds what they share: splits, vocabularies and the writer.
"""
