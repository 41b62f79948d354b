"""Scores raw rows with the model in this folder. Needs torch, pyarrow and numpy, and nothing else.

python predict.py rows.parquet scores.parquet  # or rows.csv; a column for each output, the first is the answer
python predict.py                              # the example rows, compared with what they should give
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder))
encoder = import_module("encoder.encode").Encoder(folder)  # raw columns -> arrays of ids and numbers
model = torch.export.load(str(folder / "model.pt2")).module()  # these -> probabilities, [outputs, rows]

rows, *out = sys.argv[1:] or [str(folder / "examples.parquet")]
sys.excepthook = lambda kind, error, _: print(f"{rows}: {kind.__name__}: {error}", file=sys.stderr)
if rows.endswith((".csv", ".csv.gz")):
    texts = {column["column"]: pa.string() for column in encoder.request["columns"]}
    lines = csv.ParseOptions(newlines_in_values=True)
    types = csv.ConvertOptions(column_types=texts, include_columns=list(texts))
    batches = csv.open_csv(rows, parse_options=lines, convert_options=types)
else:
    batches = parquet.ParquetFile(rows).iter_batches(4096)
parts = [np.empty((len(encoder.outputs), 0), np.float32)]
for batch in batches:
    arrays = encoder.encode(pa.Table.from_batches([batch]), first_row=sum(part.shape[1] for part in parts))
    found = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    parts.append(found.numpy(force=True))
scores = np.concatenate(parts, axis=1)

if out:
    parquet.write_table(pa.table(list(scores), encoder.outputs), *out)
else:
    expected = parquet.read_table(rows, columns=[f"expected/{name}" for name in encoder.outputs])
    difference = np.abs(scores - np.stack(expected.columns)).max()
    print(f"{expected.num_rows} examples, largest difference {difference:.1e}")
    tolerance = json.loads((folder / "about.json").read_text(encoding="utf-8"))["tolerance"]
    sys.exit(not difference <= tolerance)
