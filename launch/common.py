"""The flags that the launchers share."""

from absl import flags

CONFIG = flags.DEFINE_string("config", None, "FILE:size=… of a system, or FILE:stage=…,size=… of one stage.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for all that is written; resumed when it exists.")
SET = flags.DEFINE_multi_string(
    "set", [], "KEY=VALUE: a setting of every stage that has it; STAGE.KEY=VALUE: of one stage. May be repeated."
)
flags.mark_flag_as_required("workdir")
