"""Files of rows: csv, JSON lines, npy, npz, parquet and Arrow."""
