"""Whether a clip set can serve a task; asked before anything is loaded or trained."""

from ups_model.config import TaskData, TaskName
from ups_model.data.format.clip_data import ClipData
from ups_model.tasks import TASKS


def check_suitable(task: TaskName, data: TaskData, clips: ClipData) -> None:
    """ValueError names what the task needs and the set lacks."""
    rules, name = TASKS[task], clips.name
    if rules.kind == "pose":
        if clips.info.dims != 3 or not clips.info.camera_groups:
            raise ValueError(f"{task} needs 3D clips with cameras, {name!r} has none; use another clip set")
        blind = [row for row in range(len(clips)) if not clips.cameras(row)]
        if blind:
            raise ValueError(
                f"{task} needs cameras for each clip, got none for {str(clips.clip_id[blind[0]])!r} of {name!r}; "
                "leave such clips out when preparing the set"
            )
        turned = [field for field in ("rotation_deg", "scale", "bone_scale", "translation_m") if getattr(data, field)]
        if turned and clips.info.up_axis != "z":
            raise ValueError(
                f"bodies are turned and resized in worlds with z up, {name!r} has {clips.info.up_axis} up; "
                f"set {', '.join(turned)} to 0"
            )
        if data.detections == "stored":
            if clips.keypoints is None:
                raise ValueError(f"detections='stored' needs stored keypoints, {name!r} has none; use 'project'")
            if turned:
                raise ValueError(
                    f"stored detections cannot be turned or resized, got {', '.join(turned)} above 0; set them to 0"
                )
    elif clips.info.dims != rules.input_dims:
        raise ValueError(
            f"{task} needs {rules.input_dims}D clips, {name!r} has {clips.info.dims}D; use other clips, or another task"
        )
    elif not clips.info.classes or int(clips.label.min()) < 0:
        raise ValueError(f"{task} needs labelled clips, {name!r} has clips without a class")
