"""Profiles: what is published about running a model on some GPUs, and which of them runs it on this machine.

    models = load_all_profiles()                       every `profiles/<model>.toml`, checked
    found, why = find_profiles("nvidia/...")           the file of one model
    decision = select_profile(request, found, machine) the plan, its reasons, what was rejected and why

profile_file     the files, read and checked            model_profiles   what they hold, as values
schema           their keys, what each value must be    reasons          why a profile was chosen, in words
decision         what goes into the choice, comes out   matching         which profiles are for a GPU, in which order
fit              engines and token budget in memory     selection        the choice itself, a pure function

Nothing here reads the machine, a checkpoint or the environment, or imports more than the standard library.
"""

from rerank_cli.planning.profiles.decision import (
    GENERIC_PRECISIONS,
    Decision,
    GenericFacts,
    MachineFacts,
    MemoryNeed,
    NoProfileFitsError,
    ProfilePlan,
    Rejection,
)
from rerank_cli.planning.profiles.model_profiles import (
    GB,
    GIB,
    LanguageFacts,
    ModelFacts,
    ModelProfiles,
    Profile,
    PublishedFit,
    PublishedRow,
    PublishedTable,
    Source,
    VisionFacts,
    same_sku,
    show_capability,
)
from rerank_cli.planning.profiles.profile_file import (
    find_profiles,
    load_all_profiles,
    load_profiles,
    parse_profiles,
    profiles_dir,
)
from rerank_cli.planning.profiles.schema import PRECISION_BITS, Capability
from rerank_cli.planning.profiles.selection import select_profile

__all__ = [
    "GB",
    "GENERIC_PRECISIONS",
    "GIB",
    "PRECISION_BITS",
    "Capability",
    "Decision",
    "GenericFacts",
    "LanguageFacts",
    "MachineFacts",
    "MemoryNeed",
    "ModelFacts",
    "ModelProfiles",
    "NoProfileFitsError",
    "Profile",
    "ProfilePlan",
    "PublishedFit",
    "PublishedRow",
    "PublishedTable",
    "Rejection",
    "Source",
    "VisionFacts",
    "find_profiles",
    "load_all_profiles",
    "load_profiles",
    "parse_profiles",
    "profiles_dir",
    "same_sku",
    "select_profile",
    "show_capability",
]
