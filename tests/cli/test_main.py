"""The command itself: verbs, help, and what a mistake looks like."""

import subprocess
import sys

import pytest

from segearth_r2_jax.cli import main as command
from segearth_r2_jax.cli.main import VERBS, main
from segearth_r2_jax.errors import PREEMPTED, Preempted, UserError


def test_help_names_every_verb_and_imports_nothing_slow():
    code = (
        "import sys; from segearth_r2_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'jax', 'flax', 'numpy', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert "usage: segearth-r2 " + verb in capsys.readouterr().out


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "segearth_r2_jax", "predict"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "segearth-r2 predict: error: the following arguments are required" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["prdict"], ["predict"], ["predict", "a.png", "--instruction", "x", "--checkpoint", "c", "--output", "o", "-z"]]
)
def test_wrong_arguments_exit_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_user_error_is_one_line_and_status_2(monkeypatch, capsys):
    from segearth_r2_jax.cli import predict

    def run(args):
        raise UserError("a.png: is empty")

    monkeypatch.setattr(predict, "run", run)
    with pytest.raises(SystemExit) as end:
        main(["predict", "a.png", "--instruction", "x", "--checkpoint", "c", "--output", "o"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "segearth-r2: error: a.png: is empty\n"


def test_a_preempted_run_is_one_line_and_status_75(monkeypatch, capsys):
    from segearth_r2_jax.cli import train

    def run(args):
        raise Preempted("saved after step 3")

    monkeypatch.setattr(train, "run", run)
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", "c.py", "--workdir", "w"])
    assert end.value.code == PREEMPTED == 75
    assert capsys.readouterr().err == "segearth-r2: saved after step 3\n"


def test_a_defect_of_the_program_is_not_hidden(monkeypatch):
    from segearth_r2_jax.cli import predict

    def run(args):
        raise ZeroDivisionError

    monkeypatch.setattr(predict, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["predict", "a.png", "--instruction", "x", "--checkpoint", "c", "--output", "o"])


def test_only_a_verb_with_overrides_takes_arguments_that_its_parser_does_not_know(monkeypatch):
    from segearth_r2_jax.cli import train

    seen = []
    monkeypatch.setattr(train, "run", lambda args: seen.append(args.overrides))
    main(["train", "--config", "c.py", "--workdir", "w", "--config.num_steps=3", "--config.data.batch_size=2"])
    assert seen == [["--config.num_steps=3", "--config.data.batch_size=2"]]


def test_the_program_is_named_once():
    assert command.PROGRAM == "segearth-r2"
