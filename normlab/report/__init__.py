"""Any set of runs and evaluations as one page of HTML."""
