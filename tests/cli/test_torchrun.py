"""Scripts and examples as `torchrun` starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppvae.infer import RunFolder

pytestmark = pytest.mark.slow

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch, ppvae
from ppvae import processes
from ppvae.models import PPCA

out, what = Path(sys.argv[1]), sys.argv[2]


def disturb(row, pair, epoch):
    if epoch == 2 and processes.is_first() and what == "terminated" and not out.with_suffix(".met").exists():
        out.with_suffix(".met").touch()
        os.kill(os.getppid(), signal.SIGTERM)
    if epoch == 2 and processes.rank() == 1 and what == "killed" and not out.with_suffix(".met").exists():
        out.with_suffix(".met").touch()
        os.kill(os.getpid(), signal.SIGKILL)


x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
epochs = 100_000 if what == "terminated" and not out.with_suffix(".met").exists() else 4
run = ppvae.fit(PPCA(8, 2), x, epochs=epochs, compile=False, out=out, resume=True, callbacks=[disturb], progress=False)
processes.show(f"{run.stopped} after {len(run.history)} epochs, in {torch.get_num_threads()} thread")
"""


LEAVING = """
import atexit, runpy, sys
from pathlib import Path


def threads_left():
    left = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(f"{sum('gloo' in name for name in left)} threads left")


atexit.register(threads_left)
import torch  # torch's own exit comes before
from ppvae import processes


def fails():
    raise LookupError


def caught():
    try:
        processes.on_first(fails)
    except LookupError:
        pass


processes.join()
what = sys.argv[1]
if what == "caught":
    caught()
elif what == "compile":
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
elif what == "fit":
    import ppvae
    from ppvae.models import PPCA

    ppvae.fit(PPCA(8, 2), torch.ones(64, 8), epochs=2, batch_size=16, compile=False, progress=False)
else:
    processes.gather(what)
"""


def torchrun(*arguments, folder):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_killed_process_is_started_again_and_the_run_goes_on(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun("--max-restarts", 1, "script.py", tmp_path / "run", "killed", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished after 4 epochs, in 1 thread") == 1
    assert "Signal 9" in done.stderr or "exitcode: -9" in done.stderr


def test_a_scheduler_stops_all_with_a_checkpoint(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    stopped = torchrun("script.py", tmp_path / "run", "terminated", folder=tmp_path)
    assert stopped.returncode != 0
    assert stopped.stdout.count("interrupted after ") == 1
    reached = RunFolder(tmp_path / "run").read_checkpoint()["progress"]["epoch"]
    assert reached >= 2


def test_an_example_and_its_evaluation(tmp_path):
    made = torchrun("-m", "ppvae.examples.vae", "--smoke", "--out", tmp_path / "run", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("trained in") == 1
    found = torchrun("-m", "ppvae.evaluate", tmp_path / "run", "--num-samples", 50, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    command = [sys.executable, "-m", "ppvae.evaluate", str(tmp_path / "run"), "--num-samples", "50"]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.stdout == alone.stdout


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the names of threads as Linux shows them")
@pytest.mark.parametrize("what", ["gather", "caught", "compile", "fit"])
def test_nothing_of_the_joined_processes_is_left_when_the_interpreter_ends(what, tmp_path):
    """A thread of gloo that drops a tensor while the interpreter ends aborts the process, once in some hundred runs."""
    (tmp_path / "script.py").write_text(LEAVING)
    done = torchrun("script.py", what, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 threads left") == 2, done.stdout
