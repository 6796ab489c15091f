"""From a cohort to trained models, fold by fold."""
