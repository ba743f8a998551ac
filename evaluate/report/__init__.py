"""The report: any set of runs and evaluations as one page of HTML that needs nothing else."""
