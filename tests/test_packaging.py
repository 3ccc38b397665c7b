"""What is released holds everything, and an editable install is a path that type checkers follow."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import ppvae

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files under version control, where builds may leave theirs."""
    pytest.importorskip("setuptools", minversion="77")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout: which files there are is not known")
    copy = tmp_path_factory.mktemp("checkout")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy, set(names)


def built(checkout, hook, folder):
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / result.stdout.splitlines()[-1]


def test_the_archive_holds_every_file(checkout, tmp_path):
    copy, names = checkout
    with tarfile.open(built(copy, "build_sdist", tmp_path)) as archive:
        found = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert not names - found


def test_an_editable_install_is_a_path_with_the_types(checkout, tmp_path):
    copy, _ = checkout
    with zipfile.ZipFile(built(copy, "build_editable", tmp_path)) as wheel:
        paths = [wheel.read(name).decode().strip() for name in wheel.namelist() if name.endswith(".pth")]
        assert not [name for name in wheel.namelist() if name.endswith(".py")], (
            "an import hook, which mypy cannot follow"
        )
    assert [Path(path).resolve() for path in paths] == [copy.resolve()]
    assert (copy / "ppvae" / "py.typed").is_file()


def test_a_wheel_holds_the_package_alone(checkout, tmp_path):
    copy, names = checkout
    with zipfile.ZipFile(built(copy, "build_wheel", tmp_path)) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {name for name in names if name.startswith("ppvae/")}


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ppvae.__version__
    assert f"\nversion: {ppvae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"license: {project['license']}" in (ROOT / "CITATION.cff").read_text()
