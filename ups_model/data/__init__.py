"""Motion data: the clip format, its sources, and batches made of it."""

from ups_model.data.format.clip_set import ClipSet, Split, check_no_leak, without_leaks
from ups_model.data.prepare.catalog import GROUPS, SOURCES, default_cache, prepare

__all__ = ["GROUPS", "SOURCES", "ClipSet", "Split", "check_no_leak", "default_cache", "prepare", "without_leaks"]
