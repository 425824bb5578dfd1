"""The config of an experiment: all of its keys, with types, bounds, defaults and descriptions.

Each section is the settings class of its stage. The JSON schema that editors and `check` use, and
the tables of `config/README.md` and of the docs, are generated from these classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from msgspec import Meta

from agentsafe._util.settings import Count, JudgeName, Name, Seed, Text
from agentsafe.donors.config import Donor
from agentsafe.frontier.config import Verdict as Frontier
from agentsafe.labels.config import JudgeSettings as Judge
from agentsafe.labels.config import ToLabel
from agentsafe.models.config import Model
from agentsafe.preferences.config import Settings as Preferences
from agentsafe.rollouts.config import EmulatorSettings as Emulator
from agentsafe.rollouts.config import Section as Rollouts
from agentsafe.scores.config import Settings as Scores
from agentsafe.training.config import Lora
from agentsafe.training.config import Section as Training

_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

#: A scripted policy of `agentsafe.miniature.policies`.
Policy = Literal[
    "reckless",
    "careless",
    "half-checked",
    "cautious",
    "refusing",
    "look-then-ask",
    "look-then-act",
    "incompetent",
]
_Mixture = Annotated[
    Mapping[Policy, Annotated[float, Meta(gt=0, le=1_000_000)]], Meta(min_length=1)
]


def _sources() -> Mapping[str, _Mixture]:
    return {
        "bold": {
            "reckless": 3,
            "careless": 2,
            "half-checked": 2,
            "cautious": 1,
            "refusing": 1,
            "look-then-ask": 1,
            "look-then-act": 1.5,
            "incompetent": 1,
        },
        "timid": {
            "reckless": 1.5,
            "careless": 1,
            "half-checked": 1.5,
            "cautious": 3,
            "refusing": 1,
            "look-then-ask": 1,
            "look-then-act": 1,
            "incompetent": 1,
        },
        "weak": {
            "careless": 4,
            "incompetent": 2,
            "half-checked": 2,
            "look-then-ask": 1,
            "refusing": 1,
            "look-then-act": 1,
            "reckless": 1,
        },
    }


@dataclass(frozen=True)
class WarmUp:
    """A language model as a source of the miniature, after supervised steps on demonstrations."""

    model: Annotated[Name, Meta(description="The name in `models` of what is warmed up.")]
    policies: Annotated[
        _Mixture,
        Meta(description="The scripted policies that play the demonstrations, with weights."),
    ] = field(default_factory=lambda: dict.fromkeys(get_args(Policy), 1.0))
    steps: Annotated[
        int, Meta(ge=1, le=100_000, description="Optimizer steps, each on new demonstrations.")
    ] = 100
    batch_size: Annotated[Count, Meta(description="Demonstrations in a step.")] = 8
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="Peak learning rate.")] = 0.0002
    tuning: Annotated[
        Literal["lora", "full"],
        Meta(description="Train an adapter (`lora`) or all weights (`full`)."),
    ] = "lora"
    lora: Annotated[Lora, Meta(description="The adapter.")] = field(
        default_factory=lambda: Lora(r=16, alpha=32)
    )
    seed: Annotated[Seed, Meta(description="Seed of the demonstrations and of the adapter.")] = 0


@dataclass(frozen=True)
class Miniature:
    """The miniature's world and its source checkpoints."""

    cases: Annotated[
        int, Meta(ge=4, le=10_000, description="Cases to make, of which a seeded half trains.")
    ] = 144
    seed: Annotated[Seed, Meta(description="Seed of the cases and of the source checkpoints.")] = 0
    base_steps: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Training steps of the base checkpoint, after a warm-up of 100.",
        ),
    ] = 800
    source_steps: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Training steps from the base checkpoint to a source."),
    ] = 100
    sources: Annotated[
        Mapping[Name, _Mixture],
        Meta(
            min_length=1,
            description="Source checkpoints, each a mixture of scripted policies with weights.",
        ),
    ] = field(default_factory=_sources)
    warm_ups: Annotated[
        Mapping[Name, WarmUp],
        Meta(
            description="Further source checkpoints, language models that are trained on scripted "
            "demonstrations first, so that they speak the format; none has the instruction of a "
            "case of the run."
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class Toolemu:
    """A suite in files of ToolEmu's format."""

    cases: Annotated[
        int,
        Meta(
            ge=2,
            le=100_000,
            description="Cases to use, from number 0 on, of which a seeded half trains.",
        ),
    ] = 144
    cases_file: Annotated[
        Text, Meta(description="File with the cases; the default is downloaded if missing.")
    ] = "resources/toolemu/all_cases.json"
    toolkits_file: Annotated[
        Text, Meta(description="File with the toolkits; the default is downloaded if missing.")
    ] = "resources/toolemu/all_toolkits.json"
    user: Annotated[
        str,
        Meta(
            description="Who gives the instructions, for agent, emulator and judges to read: by "
            "default ToolEmu's user; a case's own `User` replaces it, and an empty text leaves it "
            "out."
        ),
    ] = "John Doe (john.doe@gmail.com)"
    now: Annotated[
        str,
        Meta(
            description="The time of the instructions, which `today` and `tomorrow` refer to: by "
            "default ToolEmu's; a case's own `Current Time` replaces it, and an empty text leaves "
            "it out."
        ),
    ] = "11:37 AM UTC-05:00, Tuesday, February 22, 2022"
    url: Annotated[
        str,
        Meta(
            pattern="^https?://",
            description="Address of the folder with the default files, at a fixed commit.",
        ),
    ] = (
        "https://raw.githubusercontent.com/bplaut/safety-persists-llm-agents/"
        "cde0b8f0b898252f3d56e2637cfdda636453be58/assets"
    )
    cases_sha256: Annotated[
        _Sha256, Meta(description="SHA-256 that a downloaded file of cases must have.")
    ] = "38812d86f4b55494a0d82fe5c38e54d9ccffe85393b77a65637203ed584a45fa"
    toolkits_sha256: Annotated[
        _Sha256, Meta(description="SHA-256 that a downloaded file of toolkits must have.")
    ] = "e21a8f70b1d5de4677d6d52642936a322655d79b17a72c84f600550384083a1e"


@dataclass(frozen=True)
class Published:
    """The paper's release."""

    root: Annotated[
        Text,
        Meta(
            description="Folder with the released repository's layout; one below `resources/` is "
            "downloaded if missing."
        ),
    ] = "resources/published"
    url: Annotated[Text, Meta(description="Git address that a missing release is cloned from.")] = (
        "https://github.com/bplaut/safety-persists-llm-agents.git"
    )
    commit: Annotated[
        str,
        Meta(pattern="^[0-9a-f]{40}$", description="Full hash of the commit that is downloaded."),
    ] = "cde0b8f0b898252f3d56e2637cfdda636453be58"
    label_sets: Annotated[
        tuple[Literal["gpt5m", "q32"], ...],
        Meta(
            description="Judges whose labels of the source checkpoints' rollouts become preference "
            "sets.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ("gpt5m",)
    result_sets: Annotated[
        tuple[Literal["match_eval_results", "cross_eval_results"], ...],
        Meta(
            description="Labelled rollouts of trained checkpoints that are scored.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ("match_eval_results",)
    strict: Annotated[
        bool, Meta(description="Stop with an error at the import's first finding.")
    ] = False
    cases: Annotated[
        int, Meta(ge=2, description="Cases of the released suite, of which a seeded half trains.")
    ] = 144


@dataclass(frozen=True)
class Resources:
    """Resources of jobs, and what they cost."""

    parameters: Annotated[
        Mapping[Name, Annotated[float, Meta(gt=0, le=100_000)]],
        Meta(
            description="Billions of parameters of entries of `models` whose hub id does not "
            "contain them as `Qwen3-8B` does; without either a model counts as 8."
        ),
    ] = field(default_factory=dict)
    gpu_memory: Annotated[
        Annotated[float, Meta(gt=0, le=10_000)] | None,
        Meta(
            description="GB of memory of each GPU that trains, with which `make preflight` "
            "compares what the training needs; null takes those of `gpu` or, without it, of the "
            "machine it runs on."
        ),
    ] = None
    gpu: Annotated[
        Literal["a100-40gb", "a100-80gb", "h100", "h200", "l40s", "rtx-4090"] | None,
        Meta(
            description="Kind of GPU of the jobs, whose published figures `make preflight` takes "
            "for hours where nothing was measured; null takes the kind that was calibrated."
        ),
    ] = None
    gpus: Annotated[
        Count, Meta(description="GPUs that the run has at once, for the estimate of its time.")
    ] = 1
    gpu_hour: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Price of a GPU for an hour, in the currency of the models' `price`; null "
            "estimates hours alone."
        ),
    ] = None
    calibration: Annotated[
        Text | None,
        Meta(
            description="File that `make calibrate` wrote on a machine with the GPU of the jobs; "
            "null takes `results/<run>/speed.json` if it is there."
        ),
    ] = None


@dataclass(frozen=True)
class Experiment:
    """Everything a run of the workflow depends on, apart from its input files."""

    run: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9][a-z0-9_-]*$",
            description="Name of the run and of its folder in `results/`.",
            examples=["miniature"],
        ),
    ]
    suite: Annotated[
        Literal["miniature", "toolemu", "published"],
        Meta(
            description="The world: `miniature` is small, made by rules and needs no emulator or "
            "judge, `toolemu` has the cases of files, `published` reads the paper's released "
            "rollouts."
        ),
    ] = "miniature"
    miniature: Annotated[
        Miniature, Meta(description="The miniature's world and its source checkpoints.")
    ] = field(default_factory=Miniature)
    toolemu: Annotated[
        Toolemu, Meta(description="A suite in files, ToolEmu's or your own in its format.")
    ] = field(default_factory=Toolemu)
    models: Annotated[
        Mapping[Name, Model],
        Meta(description="The language models that act, emulate or judge, by names of your own."),
    ] = field(default_factory=dict)
    sources: Annotated[
        Annotated[tuple[Name, ...], Meta(min_length=1)] | None,
        Meta(
            description="Names from `models` and, in the miniature, from `miniature.sources` and "
            "`miniature.warm_ups`, whose rollouts make the pairs; null takes all of the latter "
            "two.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = None
    donors: Annotated[
        Mapping[Name, Donor],
        Meta(
            description="Labelled rollouts of the paper's release or of earlier runs that make "
            "pairs, by names of your own; `preferences.donors` says whether the sources' own do, "
            "too."
        ),
    ] = field(default_factory=dict)
    published: Annotated[
        Published,
        Meta(description="The parts of the paper's release to read, and where they come from."),
    ] = field(default_factory=Published)
    budget: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Money for models with a `price`, in the same currency: once a run has "
            "spent it, no further rollout or label begins; null sets no limit."
        ),
    ] = None
    resources: Annotated[
        Resources,
        Meta(
            description="Sizes of models, for the memory of cluster jobs, and GPUs, for estimates."
        ),
    ] = field(default_factory=Resources)
    rollouts: Annotated[Rollouts, Meta(description="Rollouts of checkpoints on cases.")] = field(
        default_factory=Rollouts
    )
    emulator: Annotated[Emulator, Meta(description="The emulator that answers tool calls.")] = (
        field(default_factory=Emulator)
    )
    judges: Annotated[
        Mapping[JudgeName, Judge],
        Meta(
            min_length=1,
            description="The judges that label rollouts, by names of your own; each one's labels "
            "make preference sets.",
        ),
    ] = field(default_factory=lambda: {"rules": Judge()})
    to_label: Annotated[
        ToLabel, Meta(description="The sample of rollouts that `make to-label` writes for people.")
    ] = field(default_factory=ToLabel)
    preferences: Annotated[Preferences, Meta(description="Preference pairs from labels.")] = field(
        default_factory=Preferences
    )
    training: Annotated[
        Training, Meta(description="The training runs, and how each is trained.")
    ] = field(default_factory=Training)
    scores: Annotated[
        Scores,
        Meta(
            description="The labels that count, and the bootstrap of standard errors and intervals."
        ),
    ] = field(default_factory=Scores)
    frontier: Annotated[
        Frontier, Meta(description="The verdict, and the solver of the linear programs.")
    ] = field(default_factory=Frontier)
