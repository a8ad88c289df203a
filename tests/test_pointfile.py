"""Files of points: complete or absent, with the content that was written."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.errors import DataError, FileFormatError, SourceClosedError
from streamkm.models.exact.storage import release
from streamkm.recompute.pointfile import PointFile


def write(path, X, weights=None, blocks=3):
    with PointFile.create(path, [f"x{t}" for t in range(X.shape[1])], X.dtype) as file:
        for index in np.array_split(np.arange(len(X)), blocks):
            file.append(X[index], None if weights is None else weights[index])
        file.finish()
    return PointFile.open(path)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 60),
    d=st.integers(1, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
    weighted=st.booleans(),
    blocks=st.integers(1, 4),
)
def test_points_come_back_as_they_were_written(tmp_path_factory, n, d, dtype, weighted, blocks):
    rng = np.random.default_rng(n)
    X, weights = rng.normal(size=(n, d)).astype(dtype), rng.random(n) if weighted else None
    path = tmp_path_factory.mktemp("points") / "points"
    with write(path, X, weights, blocks) as file:
        assert (len(file), file.shape, file.dtype) == (n, (n, d), dtype)
        assert file.fields == tuple(f"x{t}" for t in range(d))
        assert (file.points == X).all()
        assert (file.rows(n // 3, n // 2) == X[n // 3 : n // 2]).all()
        assert file.weights is None if weights is None or n == 0 else (file.weights == weights).all()


def test_weights_may_come_late_and_be_missing_again(tmp_path):
    with PointFile.create(tmp_path / "p", ["a"]) as file:
        file.append([[1], [2]])
        file.append([[3]], [0.5])
        file.append([[4]])
        file.finish()
        assert file.points.ravel().tolist() == [1, 2, 3, 4]
        assert file.weights.tolist() == [1, 1, 0.5, 1]


def test_views_are_of_the_file_and_read_only(tmp_path):
    file = write(tmp_path / "p", np.ones((10, 2)))
    view = file.rows(2, 5)
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    release(file.points, 0, 10)
    file.close()
    assert (view == 1).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_truncated_file_is_rejected(tmp_path, weighted):
    path = tmp_path / "p"
    write(path, np.ones((500, 3), np.float32), np.ones(500) if weighted else None)
    whole = path.read_bytes()
    for size in (0, 3, 8, 16, 40, 4095, 4096, 5000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"truncated|header|not a file of points"):
            PointFile.open(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FileFormatError, match="bytes, and 500 points of 3 float32 need"):
        PointFile.open(path)


@pytest.mark.parametrize("header", [{}, {"fields": ["a"], "dtype": "int8", "weighted": False, "rows": 1}, []])
def test_an_invalid_header_is_rejected(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "p").write_bytes(b"skmpts1\n" + len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileFormatError, match="header"):
        PointFile.open(tmp_path / "p")


def test_other_files_are_rejected(tmp_path):
    (tmp_path / "p").write_text("a,b\n1,2\n")
    with pytest.raises(FileFormatError, match="not a file of points"):
        PointFile.open(tmp_path / "p")
    with pytest.raises(FileFormatError, match="cannot be read"):
        PointFile.open(tmp_path / "absent")


def test_a_name_stands_for_a_whole_file_and_nothing_is_left_of_one_that_was_given_up(tmp_path):
    path = tmp_path / "p"
    write(path, np.ones((4, 1)))
    file = PointFile.create(path, ["x0"], np.float64)
    file.append([[2.0]], [3.0])
    with PointFile.open(path) as old:
        assert len(old) == 4
    with pytest.raises(RuntimeError, match="enough"), file:
        raise RuntimeError("enough")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert len(PointFile.open(path)) == 4


@pytest.mark.parametrize(
    ("points", "weights", "message"),
    [
        ([[1.0, np.nan]], None, "row 2 has a value that is not finite"),
        ([[1.0, 1e39]], None, "row 2 has a value that is not finite in float32"),
        ([[1.0]], None, "shape"),
        ([1.0, 2.0], None, "shape"),
        ([["a", "b"]], None, "cannot be read as numbers"),
        ([[1.0, 2.0]], [1.0, 2.0], "weights have shape"),
        ([[1.0, 2.0]], [-1.0], "not negative"),
        ([[1.0, 2.0]], [np.inf], "finite"),
    ],
)
def test_invalid_points_are_rejected_and_not_appended(tmp_path, points, weights, message):
    with PointFile.create(tmp_path / "p", ["a", "b"]) as file:
        file.append(np.zeros((2, 2)))
        with pytest.raises(DataError, match=message):
            file.append(points, weights)
        assert len(file.finish()) == 2


@pytest.mark.parametrize(("fields", "dtype"), [([], np.float32), (["a", "a"], np.float32), (["a"], np.int64)])
def test_a_file_needs_named_columns_of_floats(tmp_path, fields, dtype):
    with pytest.raises(DataError):
        PointFile.create(tmp_path / "p", fields, dtype)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_before_it_is_read_and_not_afterwards(tmp_path):
    file = PointFile.create(tmp_path / "p", ["a"])
    with pytest.raises(SourceClosedError, match="Call finish first"):
        file.rows(0, 1)
    file.finish()
    with pytest.raises(SourceClosedError, match="is finished"):
        file.append([[1]])
    with pytest.raises(SourceClosedError, match="is finished"):
        file.finish()
    file.close()
    with pytest.raises(SourceClosedError, match="is closed"):
        file.rows(0, 1)
