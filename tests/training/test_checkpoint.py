import pytest
import torch

from unisci.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def state(step: int) -> dict:
    return {"step": step, "model": {"w": torch.full((50,), float(step))}}


def test_save_and_load(tmp_path):
    path = save_checkpoint(tmp_path / "deep" / "run", 7, state(7), keep=2)
    assert path == latest_checkpoint(tmp_path / "deep" / "run")
    found = load_checkpoint(path)
    assert found["step"] == 7 and torch.equal(found["model"]["w"], torch.full((50,), 7.0))


def test_the_newest_are_kept_and_no_temporary_is_left(tmp_path):
    for step in (5, 10, 999, 1000, 12345):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001000.pt", "step-000012345.pt"]
    assert load_checkpoint(latest_checkpoint(tmp_path))["step"] == 12345


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def killed(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(torch, "save", killed)
        save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert load_checkpoint(latest_checkpoint(tmp_path))["step"] == 1
    save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000002.pt"]


def test_no_folder_and_no_file_mean_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = save_checkpoint(tmp_path, 1, state(1), keep=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*delete it"):
        load_checkpoint(path)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize("content", ["text", "code"])
def test_a_foreign_file_is_named_and_runs_nothing(tmp_path, content, capsys):
    path = tmp_path / "step-000000001.pt"
    if content == "text":
        path.write_text("step,name,value\n")
    else:
        torch.save({"step": Trap()}, path)
    with pytest.raises(ValueError, match=path.name):
        load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=r"absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")
