"""Score raw rows with the model in this folder. Needs torch, pyarrow and numpy, and nothing else.

python predict.py                              # the example rows, compared with what they should give
python predict.py rows.parquet scores.parquet  # or rows.csv: a column for each output, the first is the answer
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


def score(path: str) -> np.ndarray:
    """The outputs of the model, [outputs, rows], for the rows of a file."""
    if path.endswith(".csv"):
        texts = csv.ConvertOptions(
            column_types={c["column"]: pa.string() for c in encoder.request["columns"]}
        )
        batches = csv.open_csv(path, None, csv.ParseOptions(newlines_in_values=True), texts)
    else:
        batches = parquet.ParquetFile(path).iter_batches(4096)
    parts = [np.empty((len(encoder.outputs), 0), np.float32)]
    for batch in batches:
        arrays = encoder.encode(
            pa.Table.from_batches([batch]), first_row=sum(part.shape[1] for part in parts)
        )
        parts.append(
            model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).numpy(force=True)
        )
    return np.concatenate(parts, axis=1)


if len(sys.argv) == 3:
    parquet.write_table(pa.table(list(score(sys.argv[1])), encoder.outputs), sys.argv[2])
else:
    examples = parquet.read_table(folder / "examples.parquet")
    expected = np.stack([examples[f"expected/{name}"].to_numpy() for name in encoder.outputs])
    difference = np.abs(score(str(folder / "examples.parquet")) - expected).max()
    print(f"{examples.num_rows} examples, largest difference {difference:.1e}")
    sys.exit(not difference <= json.loads((folder / "about.json").read_text("utf-8"))["tolerance"])
