"""The typed config of a run: read from TOML, validated, and written back to the run folder."""

from ptgm_fast.config.files import config_to_toml, load_config, load_source_config
from ptgm_fast.config.run import METHODS, RunConfig, with_method

__all__ = [
    "METHODS",
    "RunConfig",
    "config_to_toml",
    "load_config",
    "load_source_config",
    "with_method",
]
