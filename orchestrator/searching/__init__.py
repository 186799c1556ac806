"""The search: trials on warm gangs by Ray Tune, asked of Optuna and told to it."""
