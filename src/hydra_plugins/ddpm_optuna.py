"""Hyperparameter optimisation by Optuna, from Hydra's sweep syntax."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

STORAGE = "optuna.log"


class Optimise(Sweeper):
    """Trains with the options that Optuna suggests, and tells it the objective of each run.

    `name=interval(a,b)` is a number between a and b, `int(interval(a,b))` an integer, `tag(log,interval(a,b))` a number
    on a logarithmic scale, and any other sweep a choice. Trials are kept in `optuna.log` in the sweep's folder, where
    repeating the command adds the missing ones.

    Args:
        n_trials: number of trials, failed ones included.
        n_jobs: trials that the launcher is given at a time.
        direction: `minimize` or `maximize`.
        seed: of Optuna's sampler.
    """

    def __init__(self, n_trials: int, n_jobs: int, direction: str, seed: int) -> None:
        if n_trials < 1 or n_jobs < 1:
            raise ValueError(f"n_trials and n_jobs must be at least 1, got {n_trials} and {n_jobs}")
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"direction must be minimize or maximize, got {direction!r}")
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.direction: Any = direction
        self.seed = seed

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Take Hydra's context, task and configuration."""
        self.config: Any = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing, and print the best."""
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ValueError("hydra/sweeper=optuna needs Optuna; pip install optuna") from error
        if self.config.objective is None:
            raise ValueError("hydra/sweeper=optuna needs what to optimise; give for instance objective=bits_per_dim")
        overrides = self.parser.parse_overrides(arguments)
        space = {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}
        fixed = [str(each.input_line) for each in overrides if not each.is_sweep_override()]
        if not space:
            raise ValueError("hydra/sweeper=optuna needs a range, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'")
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / STORAGE))),
            study_name="ddpm",
            direction=self.direction,
            load_if_exists=True,
        )
        # not the draws of the trials that there are
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        complete, failed = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
        while (left := self.n_trials - len(study.get_trials(states=[complete, failed]))) > 0:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, left))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                if result.status == JobStatus.COMPLETED:
                    study.tell(trial, result.return_value)
                else:
                    study.tell(trial, state=failed)
                    print(f"trial {trial.number} failed: {result._return_value}")
        if not study.get_trials(states=[complete]):
            raise ValueError(f"all {self.n_trials} trials failed")
        best = study.best_trial
        print(f"best of {self.n_trials} trials: {self.config.objective} {best.value:.5g} with")
        for key, value in best.params.items():
            print(f"  {key}={value}")


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution([*override.sweep_string_iterator()])
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log)
    return FloatDistribution(float(low), float(high), log)  # type: ignore[arg-type]
