"""--help: quick, and it teaches. Commands of other packages: found without being imported, missed in one line."""

import resource
import subprocess
import sys

import pytest

from cli.runner import ENVIRONMENT, run, start
from widefield.commands import loading
from widefield.commands.loading import Lazy

HEAVY = {"numpy", "rich", "torch", "zarr", "onnxruntime", "openvino", "imagecodecs", "safetensors", "diffusers", "onnx"}
COMMANDS = [
    "bench", "build", "decode", "doctor", "encode", "generate", "inspect", "plan", "export", "finalize", "serve",
    "upscale", "verify",
]  # fmt: skip


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_but_click(args):
    code = f"import sys; from widefield.cli import main; main({args}); print(*sys.modules, sep='|', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert HEAVY & {name.partition(".")[0] for name in done.stderr.strip().split("|")} == set()
    assert "widefield" in done.stdout


def cpu_seconds(code: str) -> float:
    """The least of three runs: the machine may have other things to do."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def test_help_is_quick():
    """Below 150 ms on a machine with nothing else to do; here, of processor time, and with room for slow machines."""
    assert cpu_seconds("from widefield.cli import main; main(['--help'])") < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name, capsys):
    text = run(capsys, name, "--help").out
    assert f"widefield {name} " in text.split("\n\n", 1)[1]  # an example besides the usage
    assert text.rindex("\nMessages:\n") > text.rindex("  --json") - 40  # sections, with what every command has last
    if name not in ("build", "doctor", "inspect", "verify"):
        assert "-o, --out" in text or "--size" in text


def test_help_says_defaults_of_the_library(capsys):
    text = " ".join(run(capsys, "decode", "--help").out.split())
    assert "(2 GiB)" in text and "(90)" in text and "(f32)" in text


def test_the_list_of_commands(capsys):
    answer = run(capsys, "--help")
    assert answer.status == 0
    listed = answer.out.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "] == sorted(COMMANDS)


@pytest.fixture
def others(monkeypatch):
    """Commands of packages that are broken or not whole."""
    found = {
        **loading.installed(),
        "bench": Lazy("bench", "widefield_bench.not_there:bench"),
        "crash": Lazy("crash", "cli.broken_command:crash"),
    }
    monkeypatch.setattr("widefield.cli.installed", lambda: found)


def test_a_broken_command_stops_nobody(others, capsys):
    answer = run(capsys, "--help")
    assert answer.status == 0 and "decode" in answer.out
    assert "pip install 'widefield[bench]'" in " ".join(answer.out.split())
    line = run(capsys, "bench").fault()
    assert "widefield_bench.not_there, which is not installed" in line and "pip install 'widefield[bench]'" in line


def test_a_bug_of_a_command_keeps_its_traceback(others, capsys):
    assert "cannot be loaded: ZeroDivisionError" in " ".join(run(capsys, "--help").out.split())
    with pytest.raises(ZeroDivisionError):
        run(capsys, "crash")


def test_a_missing_extra_is_named(tmp_path):
    """As in an installation without the extra: torch cannot be imported."""
    code = "import sys; sys.modules['torch'] = None; from widefield.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    command = [sys.executable, "-c", code, "export", str(tmp_path), "-o", str(tmp_path / "out.wf")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: `widefield export` needs torch")
    assert "pip install 'widefield[export]'" in done.stderr


def test_a_missing_engine_is_named(bundle, latents, tmp_path):
    code = "import sys; sys.modules['onnxruntime'] = None; from widefield.cli import main; sys.exit(main(sys.argv[1:]))"
    args = ["decode", str(bundle), str(latents), "-o", str(tmp_path / "o.tif"), "--engine", "ort", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "needs onnxruntime" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_embedded_bundle_one_is_asked_for(latents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("widefield.model.EMBEDDED", tmp_path / "none")
    for args in (["decode", latents, "-o", tmp_path / "o.tif"], ["plan", "--size", "8x8"], ["inspect"]):
        assert "name it with --bundle" in run(capsys, *args).fault()


def test_a_process_that_is_started_from_scratch():
    assert start("--version").out.startswith("widefield, version ")
