"""What may become a run folder, and a manifest that is damaged or not ours."""

from __future__ import annotations

import pytest

from compact_distill.errors import RunError
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.manifest import output_problem


def test_a_damaged_manifest_of_ours_is_replaced_and_kept(tmp_path, capsys):
    RunFolder.claim(tmp_path).close()
    for broken in (
        "[]",
        "null",
        '{"format": 1, "stages": {"train": []}}',
        '{"format": 1, "stages": {"train": {}}}',
        "{",
    ):
        (tmp_path / "manifest.json").write_text(broken)
        with RunFolder.claim(tmp_path) as run:
            assert run.manifest["stages"] == {}
        assert "was damaged; it is now manifest.json." in capsys.readouterr().err
    assert len(list(tmp_path.glob("manifest.json.*"))) == 5


def test_a_manifest_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my web page"}')
    with pytest.raises(RunError, match="is damaged"):
        RunFolder.claim(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "my web page"}'


@pytest.mark.parametrize("name", ["x" * 300, "x/" + "y" * 300])
def test_a_name_that_the_system_does_not_allow_is_told(tmp_path, name):
    assert "cannot be used: File name too long" in output_problem(tmp_path / name)
    with pytest.raises(RunError, match="File name too long"):
        RunFolder.claim(tmp_path / name)
