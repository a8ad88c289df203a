"""The image as users run it: alone, on a read-only root, as nobody in particular."""

from __future__ import annotations

import json

from compose_project import docker

IMAGE = "streamkm:0.1.0"
READ_ONLY = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")


def test_help_is_what_it_runs_by_itself():
    assert docker("run", "--rm", "--read-only", "--network", "none", IMAGE).startswith("Usage: streamkm")
    assert docker("run", "--rm", "--network", "none", IMAGE, "--version") == "streamkm, version 0.1.0"


def test_it_is_small_has_labels_and_a_health_check_and_is_not_root():
    (image,) = json.loads(docker("image", "inspect", IMAGE))
    assert image["Size"] < 600e6
    config = image["Config"]
    assert config["Labels"]["org.opencontainers.image.title"] == "streamkm"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert docker(*READ_ONLY, "--entrypoint", "id", IMAGE, "--user") == "10001"


def test_all_kernels_were_compiled_with_it_and_run_on_a_read_only_root():
    count = "find /tmp/kernels -name '*.nbc' | wc -l"
    script = f"entrypoint.sh --version && {count} && entrypoint.sh compile && {count}"
    *_, before, models, codecs, exact, after = docker(
        *READ_ONLY, "--network", "none", "--entrypoint", "sh", IMAGE, "-c", script
    ).splitlines()
    assert [line.split(" ...")[0] for line in (models, codecs, exact)] == ["models", "codecs", "exact algorithm"]
    assert int(before) == int(after) > 100


def test_what_reads_files_is_in_the_other_image_and_is_named():
    told = docker(*READ_ONLY, IMAGE, "fit", "x.csv", "--k", "1", check=False, error=True)
    assert "polars is not installed" in told
    assert "streamkm:files" in told
    make = "printf 'x\\n1\\n2\\n9\\n' >/tmp/x.csv"
    found = docker(
        *READ_ONLY, "--entrypoint", "sh", "streamkm:files", "-c", f"{make} && entrypoint.sh fit /tmp/x.csv --k 2 --json"
    )
    assert sorted(c["centroid"] for c in json.loads(found)["clusters"]) == [[1.5], [9.0]]
