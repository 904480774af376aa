"""The published values of the study `multitask` are those of its paper's tables."""

import pytest

from search_spaces.others.multitask import EXIT_TABLE, POSES, SUPERVISION, TASKS


@pytest.fixture(scope="module")
def printed(repo_root):
    """Label of a line of the paper's tables -> the cells after it; of a label that comes twice, the last."""
    file = repo_root.parent / "shared" / "papers" / "deephar_multitask.txt"
    if not file.is_file():
        pytest.skip(f"the paper's text is not at {file}")
    lines = (line.split("\t") for line in file.read_text("utf-8").splitlines() if "\t" in line)
    return {label.strip(): [cell.strip() for cell in cells] for label, *cells in lines}


def values(table):
    return {line.label: line.published for line in (*table.rows, *table.references)}


def test_supervision_is_table_4(printed):
    last, every = printed["Single-PB $(p=2, l=1)$"], printed["Multi-PB $(P=2, L=4)$"]
    assert values(SUPERVISION) == {"the last exit": (None, float(last[-1])), "all exits": (None, float(every[-1]))}
    assert f"{last[-2]} with the last supervised, {every[-2]} with all" in SUPERVISION.notes[0]


def test_action_inputs_are_table_5_beside_what_the_text_says(printed):
    labels = ("Pose features only", "Appearance features only", "Combined", "Combined + decoupled poses")
    rows = [printed[label] for label in labels]
    assert [row.published for row in POSES.rows] == [(None, float(action)) for _, action in rows]
    assert all(pose in POSES.notes[0] for pose, _ in rows)
    assert f"97.4 for poses alone, 0.7 lower than combined, where Table 5 has {rows[0][1]}, 0.4 lower" in POSES.notes[1]


def test_tasks_are_tables_1_and_6(printed):
    alone, together, more = (
        printed[label]
        for label in ("Single-task (action only)", "Multi-task (same dataset)", "Multi-task (+MPII +H36M for 3D)")
    )
    pose_alone, pose = (float(printed[f"Ours ({kind}-task) [†]"][-1]) for kind in ("single", "multi"))
    assert values(TASKS) == {
        "pose only": (pose_alone, None),
        "action only": (None, float(alone[0])),
        "both": (pose, float(together[0])),
        "deephar, both, with MPII": (None, float(more[0])),
        "deephar, action only, NTU RGB+D": (None, float(alone[1])),
        "deephar, both, NTU RGB+D with MPII and Human3.6M": (pose, float(more[1])),
    }


def test_exits_are_table_7(printed):
    lines = [printed[f"Ours 3D @ {speed} fps"] for speed in (240, 180, 90)]
    poses, actions = ([float(line[place]) for line in lines] for place in (1, 3))
    (reference,) = EXIT_TABLE.references
    assert reference.published == (*poses[:2], None, poses[2], *actions[:2], None, actions[2])
