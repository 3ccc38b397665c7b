import os
import subprocess
import sys

import pytest

from ppvae.cli.pipes import outlives_its_reader


def test_a_command_goes_on_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done: list[str] = []

    def command(name: str) -> int:
        for _ in range(3):
            print(name, flush=True)  # a broken pipe
            done.append(name)
        return 7

    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert outlives_its_reader(command)("it") == 7
    assert done == ["it"] * 3


@pytest.mark.parametrize("command", ["ppvae", "ppvae.evaluate --help", "ppvae.examples.vae --help"])
def test_a_list_whose_reader_has_gone_ends_in_silence(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run([sys.executable, "-m", *command.split()], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, b"")
