"""Data in: files, folders and hub datasets to examples; filters, held-out sets, leaks. See docs/data.md."""

from gad.data.leaks import Leak, find_leaks
from gad.data.loading import Dropped, LoadedSet, Origin, PromptSet, load_examples, load_prompts
from gad.data.prompts import StreamedPrompts, has_replies
from gad.data.sets import AskedSets, DataSets, held_out_ids, load_asked, load_data, split_held_out
from gad.data.trl import export_trl

__all__ = [
    "AskedSets",
    "DataSets",
    "Dropped",
    "Leak",
    "LoadedSet",
    "Origin",
    "PromptSet",
    "StreamedPrompts",
    "export_trl",
    "find_leaks",
    "has_replies",
    "held_out_ids",
    "load_asked",
    "load_data",
    "load_examples",
    "load_prompts",
    "split_held_out",
]
