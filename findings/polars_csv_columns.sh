#!/bin/sh
# polars: a quote inside of a cell (5" pipe) makes read_csv(columns=...) give 4 of 6 rows without a word, while reading all
# columns of the same bytes is an error. Python's csv module and pandas read 6 rows.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet polars==2.1.0 pandas==2.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import csv
import io
import sys

import pandas as pd
import polars as pl

content = b'x,note\n1,ok\n2,5" pipe\n3,ok\n40,6" pipe\n5,ok\n6,ok\n'
print("polars", pl.__version__)
some = pl.read_csv(io.BytesIO(content), columns=["x"])["x"].to_list()
try:
    whole = str(pl.read_csv(io.BytesIO(content)).height)
except pl.exceptions.ComputeError as error:
    whole = type(error).__name__
python = len(list(csv.reader(io.StringIO(content.decode())))) - 1
pandas = len(pd.read_csv(io.BytesIO(content)))
print(f"seen: columns=['x'] gives {some}, all columns {whole}; csv {python} rows, pandas {pandas} rows")
# seen with 2.1.0: columns=['x'] gives [1, 2, 5, 6], all columns ComputeError; csv 6 rows, pandas 6 rows
sys.exit((some, whole, python, pandas) != ([1, 2, 5, 6], "ComputeError", 6, 6))
PYTHON
